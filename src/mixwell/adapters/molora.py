"""MoLoRA and MoV: many small changes at a matrix, mixed for each token by a soft router of the matrix's own.

**Equation:** lora: y = W x + (alpha / R) sum_e p_e(x) B_e A_e x;
    vectors: y = z + z * sum_e p_e(z) (l_e - 1), z = W x, or for the targets in `inputs` of what goes in, z = x.
    p from the router, by default softmax over all experts; where it sums to 1, the latter is z * sum_e p_e l_e.
**Shapes:** x [T, I], W [O, I]; A [E, R, I], B [E, O, R]; l [E, O], of `inputs` [E, I].
**Reference:** Zadouri et al. 2023, Pushing Mixture of Experts to the Limit (2309.05444).
**Differs:** a bias behind W is not scaled. Queries, keys and values stand in one matrix and have one router on its
    whole output; there, one over a head's width for keys and for values. A router that keeps fewer experts leaves the
    base in their place instead of shrinking it.
**Fails when:** experts that start equal have no reason to differ (vectors at a low rate). Not for stacks of experts.
**Cost:** lora 2 E R (I + O) a token, vectors E O; the router 2 E I or 2 E O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import check_rank, example_target
from mixwell.adapters._routed import RoutedWeight, mixed_changes, own_router, report_losses
from mixwell.adapters.targets import Target, fits
from mixwell.core.method import method
from mixwell.core.routing import Routing
from mixwell.mixing import check_above, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of MoLoRA and MoV."""

    form: Literal["lora", "vectors"] = "lora"  # what an expert is: a low-rank change, or factors
    num_experts: int = 10  # E
    rank: int = 4  # R, of lora
    alpha: float = 16.0  # a low-rank change counts alpha / R times
    inputs: tuple[str, ...] = ("down_proj",)  # vectors: patterns of the targets whose inputs are scaled
    router: Mapping[str, Any] | None = None  # method and its options; default: softmax over all experts

    def __post_init__(self) -> None:
        check_least(self, num_experts=1, rank=1)
        check_above(self, alpha=0)


@method(
    title="MoLoRA and MoV",
    paper="Pushing Mixture of Experts to the Limit: Extremely Parameter Efficient MoE for Instruction Tuning",
    year=2023,
)
class MoLoRA(RoutedWeight):
    """Softly mixed changes of one matrix; see the module's card."""

    parts = ("factors", "A", "B")
    targets = ("all-linear",)
    config: Config

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        experts = config.num_experts
        vectors = config.form == "vectors"
        self.maps_input = vectors and any(fits(target.name, pattern) for pattern in config.inputs)
        seen = target.outputs if vectors and not self.maps_input else target.inputs
        every = {"method": "top_k", "k": experts, "renormalise": False}
        self.router = own_router(config.router or every, seen, experts, generator)
        for name in self.parts:
            self.register_parameter(name, None)
        if vectors:
            ones = torch.ones(experts, seen, device=generator.device)
            self.factors = nn.Parameter(ones)
            return
        check_rank(config.rank, target)
        self.A = normal_parameter((experts, config.rank, target.inputs), generator)
        self.B = nn.Parameter(self.A.new_zeros(experts, target.outputs, config.rank))

    def weights(self, rows: Tensor) -> Tensor:
        """p of rows [T, .]: [T, E]; the router's own losses are handed on."""
        routing: Routing = self.router(rows, self.context)
        report_losses(self, routing, self.context)
        return routing.dense_TE()

    def scaled(self, z: Tensor, factors: Tensor) -> Tensor:
        """z with each channel scaled by the token's mixture of factors."""
        rows = z.flatten(0, -2)
        p = self.weights(rows)
        more = p @ (factors - 1).to(p.dtype)
        more = more.to(z.dtype)
        grown = rows + rows * more
        return grown.view_as(z)

    def before(self, x: Tensor, factors: Tensor | None, A: Tensor | None, B: Tensor | None) -> Tensor:
        """What goes in, scaled where this target's inputs are."""
        if factors is None or not self.maps_input:
            return x
        return self.scaled(x, factors)

    def after(self, x: Tensor, y: Tensor, weight: Any, factors: Tensor | None, A: Tensor | None,
              B: Tensor | None) -> Tensor:
        """What came out, scaled, or with the mixture of low-rank changes."""
        if A is None or B is None:
            if factors is None or self.maps_input:
                return y
            return self.scaled(y, factors)
        rows = x.flatten(0, -2)
        change = mixed_changes(rows, self.weights(rows), A, B)
        scale = self.config.alpha / self.config.rank
        return y + scale * change.view_as(y)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A layer of six inputs and five outputs, three experts of rank two."""
    return {"target": example_target(generator), "config": Config(num_experts=3, rank=2)}
