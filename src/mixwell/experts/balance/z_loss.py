"""The router z-loss: keeps router logits small, so that half-width arithmetic stays exact enough.

**Equation:** loss = 1/T sum_t (log sum_i exp h_ti)^2.
**Shapes:** logits [T, E] -> scalar.
**Reference:** Zoph et al. 2022, ST-MoE (2202.08906), eq. 5.
**Differs:** none.
**Fails when:** the coefficient is so large that the router is held at uniform.
**Cost:** O(T E).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.balance._parts import example_routing, kept


@dataclass(frozen=True, kw_only=True)
class Config:
    """The z-loss has no option beside its coefficient, which the layer holds."""


@method(
    title="Router z-loss",
    paper="ST-MoE: Designing Stable and Transferable Sparse Expert Models",
    year=2022,
)
def z_loss(routing: Routing, config: Config, context: Context) -> Tensor:
    """Mean squared log-partition of the router's logits, a scalar; raises `ValueError` where a router has no logits."""
    if routing.logits_TE is None:
        raise ValueError("z_loss needs router logits, and this router has none; leave z_loss out of `balance`")
    logits = kept(routing.logits_TE, context)
    log_z = torch.logsumexp(logits, dim=-1)
    return log_z.square().sum() / max(len(log_z), 1)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens over four experts, two each."""
    return {"routing": example_routing(generator), "config": Config(), "context": Context()}
