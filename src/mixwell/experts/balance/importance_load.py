"""Importance and load losses: the squared coefficient of variation of what experts weigh and of what they carry.

**Equation:** L = w_importance CV(I)^2 + w_load CV(Load)^2;  I_i = sum_t G_i(t);  Load_i = sum_t P(t, i);
    P(t, i) = Phi((h_ti - kth_excluding(g_t, k, i)) / s_ti): the chance that expert i stays among the k best when its
    noise alone is drawn again;  h the clean logits, g the noisy ones, s the noise's standard deviation.
**Shapes:** weights [T, K], logits [T, E] -> scalar.
**Reference:** Shazeer et al. 2017 (1701.06538), section 4, eq. 6-11 (appendix A); Riquelme et al. 2021 (2106.05974),
    appendix A, for a constant s = 1 / E.
**Differs:** a routing carries one set of logits, which stand for h and g alike, with constant s: a smooth count for
    routers without noise too. A router that draws noise can call `smooth_load` with its own h, g and s. Both weights
    default to 1, before the rule's coefficient; Shazeer et al. use 0.1 for language models.
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
from mixwell.experts.balance._parts import example_routing, kept
from mixwell.mixing import check_above


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the importance and load losses."""

    importance: float = 1.0  # weight of the importance term, 0 or more
    load: float = 1.0  # weight of the load term, 0 or more; needs logits
    noise_std: float | None = None  # s, in units of the logits, above 0; default 1 / E

    def __post_init__(self) -> None:
        importance = self.importance
        load = self.load
        weights = importance >= 0 and load >= 0
        if not (weights and importance + load > 0):
            raise ValueError(f"importance is {importance} and load is {load}; expected 0 or more, not both 0")
        check_above(self, noise_std=0)


def squared_variation(values_E: Tensor) -> Tensor:
    """CV^2: population variance over squared mean; 0 where all values are equal."""
    tiny = torch.finfo(values_E.dtype).tiny
    mean_square = values_E.mean().square()
    return values_E.var(correction=0) / mean_square.clamp_min(tiny)


def smooth_load(clean_TE: Tensor, noisy_TE: Tensor, std: Tensor | float, k: int) -> Tensor:
    """Load_E: the expected number of tokens of each expert; differentiable in logits and std. T where k = E."""
    tokens, experts = clean_TE.shape
    if k >= experts:
        return clean_TE.new_full((experts,), float(tokens))
    best = noisy_TE.topk(k + 1, dim=-1).values
    last_in, first_out = best[:, -2:].split(1, dim=1)
    inside = noisy_TE > first_out
    threshold = torch.where(inside, first_out, last_in)
    z = (clean_TE - threshold) / std / math.sqrt(2)
    chance = 0.5 * (1 + torch.erf(z))
    return chance.sum(0)


@method(
    title="Importance and load losses",
    paper="Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
    year=2017,
)
def importance_load(routing: Routing, config: Config, context: Context) -> Tensor:
    """Weighted sum of the two squared coefficients of variation, a scalar; 0 at perfect balance.

    Raises `ValueError` where the load term is asked for and the router has no logits.
    """
    loss = routing.scores_TE.new_zeros(())
    if config.importance:
        importance = kept(routing.dense_TE(), context).sum(0)
        loss = loss + config.importance * squared_variation(importance)
    if not config.load:
        return loss
    if routing.logits_TE is None:
        raise ValueError("the load term needs router logits, and this router has none; set load: 0")
    logits = kept(routing.logits_TE, context)
    std = config.noise_std or 1 / routing.num_experts
    k = routing.indices_TK.shape[1]
    load = smooth_load(logits, logits, std, k)
    return loss + config.load * squared_variation(load)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens over four experts, two each."""
    return {"routing": example_routing(generator), "config": Config(), "context": Context()}
