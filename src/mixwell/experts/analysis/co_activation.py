"""Co-activation: which experts are chosen together for a token.

**Equation:** n_ij = tokens that chose i and j;  conditional c_ij = n_ij / n_ii = P(j | i);
    lift l_ij = n_ij T / (n_ii n_jj), 1 where the two are chosen independently.
**Shapes:** indices [T, K] -> lists of E x E.
**Reference:** Muennighoff et al. 2024, OLMoE (2409.02060), section 5.2, expert co-activation; for the diagnostics it
    belongs to, Lo et al. 2024 (2406.18219); of neurons instead of experts, as its claim has it, Xiao et al. 2024,
    Configurable Foundation Models (2409.02877).
**Differs:** none.
**Fails when:** K = 1, where nothing is chosen together and the off-diagonal is 0.
**Cost:** O(T E^2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.analysis._parts import chosen_TE, example_routing, mean_off_diagonal


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the co-activation."""

    pairs: int = 5  # strongest pairs listed, 0 or more

    def __post_init__(self) -> None:
        if self.pairs < 0:
            raise ValueError(f"pairs is {self.pairs}; expected 0 or more")


def strongest(conditional_EE: Tensor, pairs: int) -> list[list[Any]]:
    """[i, j, P(j | i)] of the pairs of different experts with the largest P(j | i)."""
    experts = len(conditional_EE)
    same = torch.eye(experts, dtype=torch.bool, device=conditional_EE.device)
    apart = conditional_EE.masked_fill(same, -1).flatten()
    count = min(pairs, experts * (experts - 1))
    best = apart.topk(count)
    places = zip(best.indices.tolist(), best.values.tolist())
    return [[*divmod(place, experts), value] for place, value in places]


@method(
    title="Expert co-activation",
    paper="A Closer Look into Mixture-of-Experts in Large Language Models",
    year=2024,
)
def co_activation(routing: Routing, config: Config, context: Context) -> dict[str, Any]:
    """counts, conditional, lift (E x E lists), mean_conditional off the diagonal, strongest pairs [i, j, P(j | i)]."""
    chosen = chosen_TE(routing, context)
    counts = chosen.T @ chosen
    own = counts.diagonal()
    conditional = counts / own.clamp_min(1).unsqueeze(1)
    if_independent = own.unsqueeze(1) * own
    lift = counts * len(chosen) / if_independent.clamp_min(1)
    return {
        "counts": counts.long().tolist(),
        "conditional": conditional.tolist(),
        "lift": lift.tolist(),
        "mean_conditional": mean_off_diagonal(conditional),
        "strongest": strongest(conditional, config.pairs),
    }


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens over four experts, two each."""
    return {"routing": example_routing(generator), "config": Config(), "context": Context()}
