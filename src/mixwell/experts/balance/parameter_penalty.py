"""Parameter penalty: the Switch loss with every expert's load weighed by its size, so that small ones are preferred.

**Equation:** L = N sum_i M_i P_i;  M_i = f_i h_i / mean(h), with f_i the share of slots of expert i, h_i its hidden
    width and P_i its mean probability. Gradient flows through P only.
**Shapes:** scores [T, E], indices [T, K], sizes [E] -> scalar.
**Reference:** Wang et al. 2024, HMoE (2408.10681), eq. 4.
**Differs:** sizes are relative to their mean, so that equal sizes give exactly the Switch loss and the coefficient does
    not depend on the unit; f is the share of slots and sums to 1 for every K (the paper's sums to K).
**Fails when:** hard tokens need the large experts and the coefficient is too large to let them.
**Cost:** O(T E).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.balance._parts import example_routing, load_fractions, mean_scores


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the parameter penalty."""

    sizes: tuple[float, ...]  # h, hidden width or parameters of each expert, above 0; any unit

    def __post_init__(self) -> None:
        if not self.sizes or not min(self.sizes) > 0:
            raise ValueError(f"sizes are {list(self.sizes)}; expected one for each expert, above 0")


@method(
    title="Parameter penalty by expert size",
    paper="HMoE: Heterogeneous Mixture of Experts for Language Modeling",
    year=2024,
)
def parameter_penalty(routing: Routing, config: Config, context: Context) -> Tensor:
    """N sum_i f_i (h_i / mean h) P_i as a scalar; raises `ValueError` unless there is one size for each expert."""
    if len(config.sizes) != routing.num_experts:
        raise ValueError(f"{len(config.sizes)} sizes for {routing.num_experts} experts; give one for each")
    sizes = routing.scores_TE.new_tensor(config.sizes)
    load = load_fractions(routing, context) * sizes / sizes.mean()
    return routing.num_experts * (load * mean_scores(routing, context)).sum()


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens over four experts of arithmetic sizes, two each."""
    config = Config(sizes=(9, 11, 13, 15))
    return {"routing": example_routing(generator), "config": config, "context": Context()}
