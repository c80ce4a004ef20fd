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
from mixwell.experts.analysis._parts import example_routing, number, pearson, real


@dataclass(frozen=True, kw_only=True)
class Config:
    """The output norms have no option."""


def ranks_TE(norms_TE: Tensor) -> Tensor:
    """The rank of each expert's norm among the token's, 0 for the largest; ties go to the lower expert."""
    order = norms_TE.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, ranks)


@method(
    title="Rank of chosen experts by output norm",
    paper="A Closer Look into Mixture-of-Experts in Large Language Models",
    year=2024,
)
def output_norm(routing: Routing, norms_TE: Tensor, config: Config, context: Context) -> dict[str, Any]:
    """ranks (K x E shares; rank 0 is the largest norm), hits, chance, score_correlation (of scores and norms).

    Raises `ValueError` unless there is a norm of every expert for every token.
    """
    if norms_TE.shape != routing.scores_TE.shape:
        raise ValueError(f"norms have shape {tuple(norms_TE.shape)}; expected {tuple(routing.scores_TE.shape)}: every "
                         "expert's output norm for every token")
    indices = real(routing.indices_TK, context)
    norms = real(norms_TE, context)
    k = indices.shape[1]
    experts = routing.num_experts
    filled = indices >= 0
    rank_TK = ranks_TE(norms).gather(1, indices.clamp_min(0))
    rank_TK = rank_TK.masked_fill(~filled, -1)
    columns = [torch.bincount(column + 1, minlength=experts + 1)[1:] for column in rank_TK.unbind(1)]
    counts = torch.stack(columns).double()
    total = counts.sum(1, keepdim=True)
    shares = counts / total.clamp_min(1)
    best = min(k, experts)
    hits = (rank_TK[filled] < best).double()
    scores = real(routing.scores_TE, context)
    return {
        "ranks": shares.tolist(),
        "hits": number(hits.mean()),
        "chance": best / experts,
        "score_correlation": pearson(scores.flatten(), norms.flatten()),
    }


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens over four experts, two each, with all experts' output norms."""
    routing = example_routing(generator)
    norms_TE = torch.rand(8, 4, generator=generator)
    return {"routing": routing, "norms_TE": norms_TE, "config": Config(), "context": Context()}
