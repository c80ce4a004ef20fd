"""PEGO: a group of low-rank changes, kept apart from each other and from what the frozen matrix reads.

**Equation:** y = W x + sum_i B_i A_i x; penalty lambda (sum_i |W (B_i A_i)^T|_1 + sum_{i<j} |B_i A_i (B_j A_j)^T|_1),
    |.|_1 the sum over all entries.
**Shapes:** W [O, I], A [N, R, I], B [N, O, R]; of a stack each with E in front.
**Reference:** Hu et al. 2024, PEGO (2407.15085), eq. 4-7; JudgingH/PEGO.
**Differs:** `mean` divides the sums by O^2, so that lambda means the same at other widths. The products of O x I are
    never built. The penalty is a loss of the mixer that the matrix belongs to, in training; for a matrix elsewhere
    `penalty` gives it.
**Fails when:** W is square and of full rank: nothing is then orthogonal to all its rows, and the first term shrinks the
    change towards W's small directions, as weight decay would.
**Cost:** 2 N R (I + O) a token, N O^2 R + N^2 O^2 R / 2 a step for the penalty; nothing once merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import WeightAdapter, check_rank, example_target, full, product, uniform
from mixwell.adapters.attached import Attached
from mixwell.adapters.targets import Target
from mixwell.core.method import method
from mixwell.mixing import check_least, check_not_negative


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of PEGO."""

    count: int = 4  # N, low-rank changes at a matrix
    rank: int = 4  # R, of each
    penalty: float = 1e-3  # lambda
    preserve: float = 1.0  # how much the first sum counts
    diversify: float = 1.0  # how much the second does
    mean: bool = False  # divide the sums by O^2

    def __post_init__(self) -> None:
        check_least(self, count=1, rank=1)
        check_not_negative(self, "penalty", "preserve", "diversify")


def preserving(weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """sum_i |W (B_i A_i)^T|_1 of W [O, I], A [N, R, I] and B [N, O, R]."""
    seen = weight @ A.mT
    rows = seen @ B.mT
    return rows.abs().sum()


def diversifying(A: Tensor, B: Tensor) -> Tensor:
    """sum_{i<j} |B_i A_i (B_j A_j)^T|_1."""
    count = len(A)
    first, second = torch.triu_indices(count, count, 1, device=A.device)
    between = A[first] @ A[second].mT
    left = B[first] @ between
    rows = left @ B[second].mT
    return rows.abs().sum()


@method(
    title="PEGO, an orthogonal group of low-rank changes",
    paper="Learn to Preserve and Diversify: Parameter-Efficient Group with Orthogonal Regularization for Domain "
          "Generalization",
    year=2024,
    tags={"matrix", "experts"},
)
class PEGO(WeightAdapter):
    """A penalised group of low-rank changes; see the module's card."""

    parts = ("A", "B")
    targets = ("all-linear",)
    config: Config

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        check_rank(config.rank, target)
        stack, count, rank = target.stack, config.count, config.rank
        A = uniform((*stack, count, rank, target.inputs), target.inputs**-0.5, generator)
        self.A = nn.Parameter(A)
        self.B = nn.Parameter(A.new_zeros(*stack, count, target.outputs, rank))

    def after(self, x: Tensor, y: Tensor, weight: Any, A: Tensor, B: Tensor) -> Tensor:
        """W x + sum_i B_i A_i x; in training the penalty goes to the mixer."""
        told = self.training and self.target.site is not None
        if told and self.context.losses:
            whole = full(weight)
            losses = self.losses(whole, A, B)
            self.report(losses, self.weighed(losses))
        down = A.flatten(0, 1)
        up = torch.cat(B.unbind(), dim=-1)
        return y + product(x, down, up)

    def losses(self, weight: Tensor, A: Tensor, B: Tensor) -> dict[str, Tensor]:
        """Both sums by name, before their coefficients."""
        scale = len(weight) ** 2 if self.config.mean else 1
        own = weight.to(A.dtype)
        preserve = preserving(own, A, B) / scale
        diversify = diversifying(A, B) / scale
        return {"pego_preserve": preserve, "pego_diversify": diversify}

    def weighed(self, losses: Mapping[str, Tensor]) -> Tensor:
        """What is added to the loss."""
        config = self.config
        preserve = config.preserve * losses["pego_preserve"]
        diversify = config.diversify * losses["pego_diversify"]
        return config.penalty * (preserve + diversify)

    def delta(self, weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """sum_i B_i A_i."""
        return (B @ A).sum(0)


def penalty(there: Attached) -> Tensor:
    """What PEGO adds to the loss of a model whose matrices belong to no mixer, over all targets."""
    found = []
    for adapter in there.adapters.values():
        weight, bounds = adapter.target.numbers, [adapter.bound()]
        if adapter.target.stack:
            bounds = adapter.bound().unbind()
        else:
            weight = weight[None]
        for own, bound in zip(weight, bounds):
            losses = adapter.losses(own, *bound.parts)
            found.append(adapter.weighed(losses))
    return torch.stack(found).sum()


def example(generator: torch.Generator) -> dict[str, Any]:
    """A layer of six inputs and five outputs, three changes of rank two."""
    return {"target": example_target(generator), "config": Config(count=3, rank=2)}
