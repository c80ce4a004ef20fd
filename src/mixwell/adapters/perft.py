"""PERFT: small adapters beside a frozen mixture, routed by a router of their own, by the mixture's, or not at all.

**Equation:** y = M(x) + sum_j g_j(x) D_j(x), M the frozen mixture;
    R: g from an own router over `num_adapters`; E: one adapter for each expert, g the frozen router's weights, which is
    sum_i g_i (E_i(x) + D_i(x)); D: g = 1 for each of `num_adapters`; S: one adapter, g = 1.
    D_j(x) = (alpha / R) B A x (lora) or B silu(A x) (parallel).
**Shapes:** x [T, D]; A [M, R, D], B [M, D, R], of M adapters.
**Reference:** Liu et al. 2024, PERFT (2411.08212).
**Differs:** A starts normal with std sqrt(2 / R) and B with 1e-6, as there, so that the start is the base to 1e-6 only.
    The own router's weights are renormalised for k above 1. Whether `D` averages there was not to be had; here it sums.
**Fails when:** with E, an expert that no token visits never moves its adapter.
**Cost:** 4 D R for each adapter that a token visits; R 2 D M more for the router.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.adapters._parts import dropped, product
from mixwell.adapters._routed import RoutedLayer, check_width, through, width_of
from mixwell.adapters.targets import Target
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.layers.moe import Config as Mixture
from mixwell.experts.layers.moe import MoE
from mixwell.mixing import Mixed, check_above, check_least, check_rate, normal_parameter

ALMOST_ZERO = 1e-6  # std of B at its start


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of PERFT."""

    variant: Literal["R", "E", "D", "S"] = "R"  # own router, frozen router, all adapters always, a single one
    form: Literal["lora", "parallel"] = "lora"  # what an adapter is
    rank: int = 8  # R; of `parallel` its hidden width
    alpha: float = 16.0  # lora counts alpha / R times
    num_adapters: int = 4  # M, of the variants R and D
    dropout: float = 0.0  # of what goes into A, in training; 0 up to 1
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 2})  # of the variant R
    balance: Mapping[str, Any] = field(default_factory=lambda: {"switch": 0.01})  # of R's router: rule -> coefficient

    def __post_init__(self) -> None:
        check_least(self, rank=1, num_adapters=1)
        check_above(self, alpha=0)
        check_rate(self, "dropout")


@method(
    title="PERFT, with its variants R, E, D and S",
    paper="PERFT: Parameter-Efficient Routed Fine-Tuning for Mixture-of-Expert Model",
    year=2024,
    tags={"mixture", "inexact-start"},
)
class PERFT(RoutedLayer):
    """Routed adapters beside a mixture; see the module's card."""

    targets = ("channel_mixer",)
    config: Config

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        count = self._count()
        width = width_of(target)
        check_width(config.rank, width, target)
        self.scale = config.alpha / config.rank if config.form == "lora" else 1.0
        if config.variant == "R":
            self.put_router(config.router, config.balance, count, generator)
        loud = (2 / config.rank) ** 0.5
        self.A = normal_parameter((count, config.rank, width), generator, loud)
        self.B = normal_parameter((count, width, config.rank), generator, ALMOST_ZERO)

    def _count(self) -> int:
        """M of the variant."""
        if self.config.variant == "S":
            return 1
        if self.config.variant != "E":
            return self.config.num_adapters
        router: Any = getattr(self.target.owner, "router", None)
        if router is None:
            raise MixwellError(f"{self.target.name} has no router, which variant E takes over; choose R, D or S.")
        experts: int = router.num_experts
        return experts

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]: the mixture's result and the adapters'."""
        mixed: Mixed = self.base(x_TD, context)
        more = self.changes(x_TD, mixed.routing, context)
        return mixed._replace(y_TD=mixed.y_TD + more)

    def changes(self, x_TD: Tensor, frozen: Routing | None, context: Context) -> Tensor:
        """What the adapters add [T, D]; `frozen` is how the mixture routed."""
        draws = context.generator if self.training else None
        adapted = functools.partial(self.adapted, draws=draws)
        if self.config.variant == "R":
            routing = self.route(x_TD, context)
            return through((x_TD,), routing, adapted)
        if self.config.variant == "E":
            if frozen is None:
                raise MixwellError(f"{self.target.name} routes no discrete choice for variant E; choose R, D or S.")
            return through((x_TD,), frozen, adapted)
        count = len(self.A)
        each = [adapted(x_TD, j) for j in range(count)]
        return torch.stack(each).sum(0)

    def adapted(self, x_ND: Tensor, adapter: int, draws: torch.Generator | None) -> Tensor:
        """D_j of rows [N, D]."""
        x_ND = dropped(x_ND, self.config.dropout, draws)
        hidden = product(x_ND, self.A[adapter])
        if self.config.form == "parallel":
            hidden = F.silu(hidden)
        out = product(hidden, self.B[adapter])
        return self.scale * out


def example(generator: torch.Generator) -> dict[str, Any]:
    """Four adapters of rank two beside a mixture of width six."""
    owner = MoE(6, Mixture(num_experts=4, hidden_dim=5), generator)
    return {"target": Target("channel_mixer", owner), "config": Config(rank=2, alpha=4.0)}
