"""Asymmetric LoRA: one of the two thin factors is drawn once and kept, the other is trained.

**Equation:** y = W x + (alpha / R) B A x; A is kept where B is trained, B where A is; the trained one starts at 0.
**Shapes:** W [O, I], A [R, I], B [O, R]; of a stack each with E in front.
**Reference:** Asymmetry in Low-Rank Adapters (AsymmetryLoRA): A with orthonormal rows kept, B trained.
**Differs:** orthonormal factors come from a QR decomposition of gaussian draws, uniform over the directions.
    Gaussian factors have the same length on average: variance 1 / I for A, 1 / O for B.
**Fails when:** the change is not seen by the R kept directions: take twice the rank, for the numbers that A would take.
**Cost:** 2 R (I + O) a token; O R numbers are trained, or R I.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import WeightAdapter, check_rank, example_target, product
from mixwell.adapters.targets import Target
from mixwell.core.method import method
from mixwell.core.rng import normal
from mixwell.mixing import check_above, check_least


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of asymmetric LoRA."""

    rank: int = 8  # R
    alpha: float = 16.0  # the change counts alpha / R times
    train: Literal["B", "A"] = "B"  # the other is kept as it was drawn
    start: Literal["orthonormal", "gaussian"] = "orthonormal"  # of the factor that is kept

    def __post_init__(self) -> None:
        check_least(self, rank=1)
        check_above(self, alpha=0)


@method(
    title="Asymmetric LoRA, one factor kept",
    paper="Asymmetry in Low-Rank Adapters of Foundation Models",
    year=2024,
    tags={"matrix", "experts"},
)
class Asymmetry(WeightAdapter):
    """A low-rank change of which one factor is trained; see the module's card."""

    parts = ("A", "B")
    targets = ("all-linear",)
    config: Config

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        check_rank(config.rank, target)
        self.scale = config.alpha / config.rank
        stack, outputs, inputs = target.stack, target.outputs, target.inputs
        if config.train == "B":
            kept = self._drawn(inputs, generator)
            self.register_buffer("A", kept.mT.contiguous())
            self.B = nn.Parameter(kept.new_zeros(*stack, outputs, config.rank))
        else:
            kept = self._drawn(outputs, generator)
            self.register_buffer("B", kept)
            self.A = nn.Parameter(kept.new_zeros(*stack, config.rank, inputs))

    def _drawn(self, width: int, generator: torch.Generator) -> Tensor:
        """R random columns [..., width, R], of length 1 or about 1."""
        shape = *self.target.stack, width, self.config.rank
        columns = normal(shape, width**-0.5, generator)
        if self.config.start == "gaussian":
            return columns
        return torch.linalg.qr(columns).Q.contiguous()

    def after(self, x: Tensor, y: Tensor, weight: Any, A: Tensor, B: Tensor) -> Tensor:
        """W x + (alpha / R) B A x."""
        change = product(x, A, B)
        return y + self.scale * change

    def delta(self, weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """(alpha / R) B A."""
        change = B @ A
        return self.scale * change


def example(generator: torch.Generator) -> dict[str, Any]:
    """A layer of six inputs and five outputs, rank two."""
    return {"target": example_target(generator), "config": Config(rank=2, alpha=4.0)}
