"""FLoRA: a small full core between two thin factors beside a frozen matrix, the Tucker form of a matrix.

**Equation:** y = W x + s B G A x.
**Shapes:** W [O, I], A [R, I], G [Q, R], B [O, Q]; of a stack each with E in front.
**Reference:** FLoRA (SJTU-DeepVisionLab/FLoRA), the core space of two axes; the core starts at 0.
**Differs:** matrices alone; the factors are drawn uniformly within one over the root of their inner width. The
    change is never built in the forward pass.
**Fails when:** a factor is at 0 as well as the core: nothing then moves.
**Cost:** 2 (R I + Q R + O Q) a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import WeightAdapter, check_rank, example_target, product, uniform
from mixwell.adapters.targets import Target
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of FLoRA."""

    rank_in: int = 8  # R, of the inputs' factor
    rank_out: int = 8  # Q, of the outputs' factor
    scale: float = 4.0  # s

    def __post_init__(self) -> None:
        check_least(self, rank_in=1, rank_out=1)
        check_above(self, scale=0)


@method(
    title="FLoRA, a Tucker core",
    paper="FLoRA: Low-Rank Core Space for N-dimension",
    year=2024,
    tags={"matrix", "experts"},
)
class FLoRA(WeightAdapter):
    """A core between two factors; see the module's card."""

    parts = ("A", "core", "B")
    targets = ("all-linear",)
    config: Config

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        check_rank(config.rank_in, target)
        check_rank(config.rank_out, target)
        stack, outputs, inputs = target.stack, target.outputs, target.inputs
        A = uniform((*stack, config.rank_in, inputs), inputs**-0.5, generator)
        B = uniform((*stack, outputs, config.rank_out), config.rank_out**-0.5, generator)
        self.A = nn.Parameter(A)
        self.core = nn.Parameter(A.new_zeros(*stack, config.rank_out, config.rank_in))
        self.B = nn.Parameter(B)

    def after(self, x: Tensor, y: Tensor, weight: Any, A: Tensor, core: Tensor, B: Tensor) -> Tensor:
        """W x + s B G A x."""
        change = product(x, A, core, B)
        return y + self.config.scale * change

    def delta(self, weight: Tensor, A: Tensor, core: Tensor, B: Tensor) -> Tensor:
        """s B G A."""
        change = B @ core @ A
        return self.config.scale * change


def example(generator: torch.Generator) -> dict[str, Any]:
    """A layer of six inputs and five outputs, ranks three and two."""
    return {"target": example_target(generator), "config": Config(rank_in=3, rank_out=2)}
