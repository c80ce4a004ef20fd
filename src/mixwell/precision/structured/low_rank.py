"""Two factors of low rank, which start where the leading part of a dense matrix would.

**Equation:** W x = U (V x), nothing between;  U = U_r S_r^1/2, V = S_r^1/2 V_r^T of a matrix of normal draws at the
    start (spectral start), of a trained one where one is factorised. With `decay` d, d ||U V||_F^2 joins the loss.
**Shapes:** x [..., I]; U (weight) [O, R], V (right) [R, I]; with rank 0 U is W [O, I] itself, and there is no V.
**Reference:** Wei et al. 2024 (2407.09835) and its code; decay of the product: Wang et al. 2023 (2305.02538).
**Differs:** the start may be asked for as entries of U and V that are normal and give W's variance (`start: normal`);
    the spectral one loses what lies beyond the rank, as published. The sequel's self-guided training is not here.
**Fails when:** the rank is above O I / (O + I): then the factors are larger than the matrix.
**Cost:** 2 R (O + I) FLOPs a row; one decomposition at the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.kernels.linear import linear
from mixwell.mixing import check_least, check_not_negative, normal_parameter
from mixwell.precision.structured._parts import (
    Ranked,
    check_rank,
    drawn_halves,
    halves,
    parameter,
    structured_example,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of factors of low rank."""

    rank: int = 0  # R, at least 1; 0 keeps the matrix whole
    ranks: tuple[int, ...] | None = None  # of each matrix of a layer in turn (gate, up, out of each expert)
    start: Literal["spectral", "normal"] = "spectral"  # the leading part of a dense start, or factors of its variance
    decay: float = 0.0  # d: of the product's squared norm, 0 or more; an optimiser's own decay goes on beside it

    def __post_init__(self) -> None:
        check_least(self, rank=0)
        check_not_negative(self, "decay")
        for rank in self.ranks or ():
            if rank < 0:
                raise ValueError(f"ranks holds {rank}; expected at least 1, or 0 for a matrix kept whole")


def squared_norm(left: Tensor, right: Tensor) -> Tensor:
    """||U V||_F^2, from U^T U and V V^T."""
    of_left = left.T @ left
    of_right = right @ right.T
    return (of_left * of_right).sum()


@method(
    title="Factors of low rank",
    paper="Investigating Low-Rank Training in Transformer Language Models: Efficiency and Scaling Analysis",
    year=2024,
    tags={"factorises"},
)
class LowRank(Ranked):
    """Two factors of low rank; see the module's card."""

    factorises = True
    config: Config

    def __init__(self, rows: int, columns: int, config: Config, generator: torch.Generator | None = None,
                 std: float | None = None) -> None:
        super().__init__(rows, columns, config)
        entry = self.own_std(std)
        self.register_parameter("right", None)
        if not config.rank:
            self.weight = normal_parameter((rows, columns), generator, entry)
            return
        rank = config.rank
        check_rank(rank, rows, columns)
        if config.start == "spectral":
            left, right = drawn_halves(rows, columns, rank, entry, generator)
            self.weight, self.right = parameter(left), parameter(right)
        else:
            each = (entry / rank**0.5) ** 0.5
            self.weight = normal_parameter((rows, rank), generator, each)
            self.right = normal_parameter((rank, columns), generator, each)

    @classmethod
    def from_dense(cls, weight: Tensor, config: Config, generator: torch.Generator) -> Self:
        """The nearest matrix of that rank."""
        rows, columns = weight.shape
        made = cls(rows, columns, config, generator)
        with torch.no_grad():
            if made.right is None:
                made.weight.copy_(weight)
                return made
            left, right = halves(weight.double(), config.rank)
            made.weight.copy_(left)
            made.right.copy_(right)
        return made

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """U (V x): [..., I] -> [..., O]."""
        if self.right is None:
            return linear(x, self.weight)
        inner = linear(x, self.right)
        return linear(inner, self.weight)

    def dense(self) -> Tensor:
        """U V [O, I]."""
        if self.right is None:
            return self.weight
        return self.weight @ self.right

    def penalty(self) -> Tensor | None:
        """d ||U V||_F^2."""
        decay = self.config.decay
        if not decay:
            return None
        if self.right is None:
            return decay * self.weight.square().sum()
        return decay * squared_norm(self.weight, self.right)

    def flops_per_token(self) -> float:
        """2 R (O + I), or 2 O I of a whole matrix."""
        sizes = [factor.numel() for factor in self.parameters()]
        return 2.0 * sum(sizes)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A matrix of eight by twelve in factors of rank three."""
    return structured_example(generator, Config(rank=3))
