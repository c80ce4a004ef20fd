"""Hydra: two low-rank branches beside a frozen matrix, one on what goes into it and one on what comes out.

**Equation:** z = W x + b; y = z + s B A x + s D C z.
**Shapes:** W [O, I], A [R, I], B [O, R], C [Q, O], D [O, Q]; of a stack each with E in front.
**Reference:** Hydra (extremebird/Hydra): parallel and sequential branch, merged as W + s (B A + D C W).
**Differs:** the branches have no biases, as in its language runs; A and C are drawn uniformly as LoRA's A is.
**Fails when:** W is square and R large: both branches then span the same changes.
**Cost:** 2 R (I + O) + 4 Q O a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.adapters._parts import WeightAdapter, check_rank, example_target, product, thin_pair
from mixwell.adapters.targets import Target
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of Hydra."""

    parallel: int = 4  # R, rank of the branch on what goes in
    sequential: int = 4  # Q, rank of the branch on what comes out
    scale: float = 1.0  # s, of both

    def __post_init__(self) -> None:
        check_least(self, parallel=1, sequential=1)
        check_above(self, scale=0)


@method(
    title="Hydra",
    paper="Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning",
    year=2023,
    tags={"matrix", "experts"},
)
class Hydra(WeightAdapter):
    """A parallel and a sequential branch; see the module's card."""

    parts = ("A", "B", "C", "D")
    targets = ("all-linear",)
    config: Config

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        check_rank(config.parallel, target)
        check_rank(config.sequential, target)
        stack, outputs, inputs = target.stack, target.outputs, target.inputs
        self.A, self.B = thin_pair(stack, outputs, inputs, config.parallel, generator)
        self.C, self.D = thin_pair(stack, outputs, outputs, config.sequential, generator)

    def after(self, x: Tensor, y: Tensor, weight: Any, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        """W x + s (B A x + D C W x); the bias follows by `bias`."""
        beside = product(x, A, B)
        behind = product(y, C, D)
        change = beside + behind
        return y + self.config.scale * change

    def bias(self, bias: Tensor, weight: Any, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        """b + s D C b: the sequential branch reads the bias, too."""
        change = product(bias, C, D)
        return bias + self.config.scale * change

    def delta(self, weight: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        """s (B A + D C W)."""
        behind = D @ (C @ weight)
        change = B @ A + behind
        return self.config.scale * change


def example(generator: torch.Generator) -> dict[str, Any]:
    """A layer of six inputs and five outputs, ranks two and three."""
    return {"target": example_target(generator), "config": Config(parallel=2, sequential=3)}
