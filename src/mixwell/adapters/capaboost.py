"""CapaBoost: copies of one low-rank pair, each under fixed random masks of its own, so that their sum has more rank.

**Equation:** y = W x + (alpha / R) sum_d (B * M_d) ((A * N_d) x).
**Shapes:** W [O, I], A [R, I], B [O, R], masks N [copies, R, I] and M [copies, O, R]; of a stack each with E in front.
**Reference:** CapaBoost (LINs-lab/CapaBoost): an exact share of each mask is 1, masks never change.
**Differs:** every copy starts at B = 0, so the start is the base; the masks are dense and cost as much as no masks.
**Fails when:** the change that is needed has rank R at most: LoRA then fits it better. Copies add up: tune alpha anew.
**Cost:** 2 R (I + O) a token and copy; R (I + O) numbers are trained, as in LoRA.
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
    """Options of CapaBoost."""

    rank: int = 8  # R of the pair that the copies share
    alpha: float = 16.0  # each copy counts alpha / R times
    copies: int = 2
    density: float = 0.5  # share of each mask that is 1

    def __post_init__(self) -> None:
        check_least(self, rank=1, copies=1)
        check_above(self, alpha=0)
        if not 0 < self.density <= 1:
            raise ValueError(f"density is {self.density}; expected above 0 up to 1")


def masks(shape: tuple[int, ...], density: float, generator: torch.Generator) -> Tensor:
    """Zeros and ones [..., rows, columns]; each matrix has the same count of ones, `density` of it and one at least."""
    *front, rows, columns = shape
    size = rows * columns
    count = max(1, round(density * size))
    scores = torch.rand((*front, size), generator=generator, device=generator.device)
    best = scores.topk(count).indices
    ones = torch.zeros_like(scores).scatter(-1, best, 1.0)
    return ones.reshape(shape)


@method(
    title="CapaBoost, masked copies of one low-rank pair",
    paper="Increasing Model Capacity for Free: A Simple Strategy for Parameter Efficient Fine-tuning",
    year=2024,
    tags={"matrix", "experts"},
)
class CapaBoost(WeightAdapter):
    """Masked copies of one pair; see the module's card."""

    parts = ("A", "B", "masks_A", "masks_B")
    targets = ("all-linear",)
    config: Config

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        check_rank(config.rank, target)
        self.scale = config.alpha / config.rank
        stack, outputs, inputs = target.stack, target.outputs, target.inputs
        self.A, self.B = thin_pair(stack, outputs, inputs, config.rank, generator)
        many = *stack, config.copies
        self.register_buffer("masks_A", masks((*many, config.rank, inputs), config.density, generator))
        self.register_buffer("masks_B", masks((*many, outputs, config.rank), config.density, generator))

    def after(self, x: Tensor, y: Tensor, weight: Any, A: Tensor, B: Tensor, masks_A: Tensor,
              masks_B: Tensor) -> Tensor:
        """W x + s sum_d (B * M_d) (A * N_d) x, the copies side by side as one pair of rank copies R."""
        change = product(x, *side_by_side(A, B, masks_A, masks_B))
        return y + self.scale * change

    def delta(self, weight: Tensor, A: Tensor, B: Tensor, masks_A: Tensor, masks_B: Tensor) -> Tensor:
        """s sum_d (B * M_d) (A * N_d)."""
        down, up = side_by_side(A, B, masks_A, masks_B)
        change = up @ down
        return self.scale * change


def side_by_side(A: Tensor, B: Tensor, masks_A: Tensor, masks_B: Tensor) -> tuple[Tensor, Tensor]:
    """The masked copies as one pair [copies R, I], [O, copies R]."""
    down = (A * masks_A).flatten(0, 1)
    ups = B * masks_B
    up = ups.transpose(0, 1).flatten(1)
    return down, up


def example(generator: torch.Generator) -> dict[str, Any]:
    """A layer of six inputs and five outputs, two copies of rank two."""
    return {"target": example_target(generator), "config": Config(rank=2, alpha=4.0)}
