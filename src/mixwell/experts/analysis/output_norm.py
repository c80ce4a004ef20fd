"""Output norms: does the router choose the experts that would answer loudest?

**Equation:** r_tk = rank of ||E_i(x_t)|| among all experts, for i the k-th expert chosen;  share_k,r = tokens with
    r_tk = r;  hits = share of choices among the K largest norms, K / E by chance.
**Shapes:** norms [T, E], indices [T, K] -> a K x E list and numbers.
**Reference:** Lo et al. 2024 (2406.18219), section 5.1 (ranks of chosen experts by output norm).
**Differs:** none.
**Fails when:** only the chosen experts were run: all E norms are needed.
**Cost:** O(T E log E), and running every expert on every token beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.analysis._parts import number, pearson, real


@dataclass(frozen=True, kw_only=True)
class Config:
    """The output norms have no option."""


@method(
    title="Rank of chosen experts by output norm",
    paper="A Closer Look into Mixture-of-Experts in Large Language Models",
    year=2024,
)
def output_norm(routing: Routing, norms_TE: Tensor, config: Config, context: Context) -> dict[str, Any]:
    """ranks (K x E shares; rank 0 is the largest norm), hits, chance, score_correlation (of scores and norms)."""
    if norms_TE.shape != routing.scores_TE.shape:
        raise ValueError(f"norms have shape {tuple(norms_TE.shape)}; expected {tuple(routing.scores_TE.shape)}: every "
                         "expert's output norm for every token")
    indices, norms = real(routing.indices_TK, context), real(norms_TE, context)
    k, experts = indices.shape[1], routing.num_experts
    order = norms.argsort(dim=-1, descending=True, stable=True)
    rank_TE = torch.empty_like(order).scatter_(1, order, torch.arange(experts, device=order.device).expand_as(order))
    ranks = torch.where(indices >= 0, rank_TE.gather(1, indices.clamp_min(0)), -1)
    filled = indices >= 0
    counts = torch.stack([torch.bincount(ranks[:, j] + 1, minlength=experts + 1)[1:] for j in range(k)]).double()
    best = min(k, experts)
    return {
        "ranks": (counts / counts.sum(1, keepdim=True).clamp_min(1)).tolist(),
        "hits": number((ranks[filled] < best).double().mean()),
        "chance": best / experts,
        "score_correlation": pearson(real(routing.scores_TE, context).flatten(), norms.flatten()),
    }


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens over four experts, two each, with all experts' output norms."""
    scores = torch.randn(8, 4, generator=generator).softmax(-1)
    weights, indices = scores.topk(2, dim=-1)
    return {"routing": Routing(indices, weights, scores), "norms_TE": torch.rand(8, 4, generator=generator),
            "config": Config(), "context": Context()}
