"""Importance and load losses: the squared coefficient of variation of what experts weigh and of what they carry.

**Equation:** L = w_importance CV(I)^2 + w_load CV(Load)^2;  I_i = sum_t G_i(t);  Load_i = sum_t P(t, i);
    P(t, i) = Phi((h_ti - kth_excluding(g_t, k, i)) / s_ti): the chance that expert i stays among the k best when its
    noise alone is drawn again;  h the clean logits, g the noisy ones, s the noise's standard deviation.
**Shapes:** weights [T, K], logits [T, E] -> scalar.
**Reference:** Shazeer et al. 2017 (1701.06538), section 4, eq. 6-11 (appendix A); Riquelme et al. 2021 (2106.05974),
    appendix A, for a constant s = 1 / E.
**Differs:** a routing carries one set of logits, which stand for h and g alike, with constant s: a smooth count for
    routers without noise too. A router that draws noise can call `smooth_load` with its own h, g and s.
**Fails when:** the importance is even and the load is not, or the other way round, if one weight is 0.
**Cost:** O(T E log K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.balance._parts import kept


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the importance and load losses."""

    importance: float = 1.0  # weight of the importance term, 0 or more
    load: float = 1.0  # weight of the load term, 0 or more; needs logits
    noise_std: float | None = None  # s, in units of the logits, above 0; default 1 / E

    def __post_init__(self) -> None:
        if not (self.importance >= 0 and self.load >= 0 and self.importance + self.load > 0):
            raise ValueError(f"importance is {self.importance} and load is {self.load}; expected 0 or more, not both 0")
        if self.noise_std is not None and not self.noise_std > 0:
            raise ValueError(f"noise_std is {self.noise_std}; expected a number above 0")


def squared_variation(values_E: Tensor) -> Tensor:
    """CV^2: population variance over squared mean; 0 where all values are equal."""
    return values_E.var(correction=0) / values_E.mean().square().clamp_min(torch.finfo(values_E.dtype).tiny)


def smooth_load(clean_TE: Tensor, noisy_TE: Tensor, std: Tensor | float, k: int) -> Tensor:
    """Load_E: the expected number of tokens of each expert; differentiable in logits and std. T where k = E."""
    tokens, experts = clean_TE.shape
    if k >= experts:
        return clean_TE.new_full((experts,), float(tokens))
    best = noisy_TE.topk(k + 1, dim=-1).values
    inside = noisy_TE > best[:, k:]
    threshold = torch.where(inside, best[:, k:], best[:, k - 1 : k])
    return (0.5 * (1 + torch.erf((clean_TE - threshold) / std / math.sqrt(2)))).sum(0)


@method(
    title="Importance and load losses",
    paper="Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
    year=2017,
)
def importance_load(routing: Routing, config: Config, context: Context) -> Tensor:
    """Weighted sum of the two squared coefficients of variation, a scalar; 0 at perfect balance."""
    loss = routing.scores_TE.new_zeros(())
    if config.importance:
        loss = loss + config.importance * squared_variation(kept(routing.dense_TE(), context).sum(0))
    if config.load:
        if routing.logits_TE is None:
            raise ValueError("the load term needs router logits, and this router has none; set load: 0")
        logits = kept(routing.logits_TE, context)
        std = config.noise_std or 1 / routing.num_experts
        loss = loss + config.load * squared_variation(smooth_load(logits, logits, std, routing.indices_TK.shape[1]))
    return loss


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens over four experts, two each."""
    logits = torch.randn(8, 4, generator=generator)
    scores = logits.softmax(-1)
    weights, indices = scores.topk(2, dim=-1)
    return {"routing": Routing(indices, weights, scores, logits), "config": Config(), "context": Context()}
