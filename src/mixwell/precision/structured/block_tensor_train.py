"""Block tensor train (BTT): two batched products over a grid, each factor with a start and a learning rate of its own.

**Equation:** I = m1 m2, O = n1 n2;  z[a, c, s] = sum_b P[a, b, (c, s)] x[(a, b)],  y[(c, d)] = sum_{a, s}
    Q[c, (a, s), d] z[a, c, s]: block (c, a) of W, of n2 rows and m1 columns, is any matrix of rank r. r = 1: Monarch.
    A factor of fan-in f and fan-out g starts with std f^-1/2 min(1, sqrt(g / f)) and learns I / (2 f) times as fast.
**Shapes:** x [..., I]; P (first) [m2, m1, n1 r]; Q (weight) [n1, m2 r, n2]; n2, m1 at least r.
**Reference:** Qiu et al. 2024 (2406.06248), sections 3 and 4, and its code.
**Differs:** what is kept is a factor over its rate, which Adam then moves as fast as the paper's rates do, in any
    optimiser of its kind; weight decay is not raised with the rate. The last factor of a branch starts small (as the
    decoder's other branches) instead of at zero. Gate and up are two matrices.
**Fails when:** O or I is prime: one factor is then the whole matrix. Under SGD the rates would be others.
**Cost:** 2 r n1 m2 (m1 + n2) FLOPs a row, 4 r D^1.5 for a square of D; as many parameters as half of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.mixing import Structured, check_least, normal_parameter
from mixwell.precision.structured._parts import even_factors, halves, structured_example

NAMES = ("first", "weight")  # of the factors


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the block tensor train."""

    rank: int = 1  # r, of each block
    rates: bool = True  # each factor learns at a rate of its own
    base_dim: int | None = None  # width at which the learning rate was tuned: others learn base_dim / I times as fast
    norm: bool = False  # keep each factor's root mean square at its start's or below, times a gain that is learnt

    def __post_init__(self) -> None:
        check_least(self, rank=1, base_dim=1)
        if self.base_dim is not None and not self.rates:
            raise ValueError(f"base_dim is {self.base_dim} without rates; set rates, or leave it out")


def product(x: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """W x: [T, I] -> [T, O], of the factors [m2, m1, n1 r] and [n1, m2 r, n2]."""
    m2, m1, width = first.shape
    n1 = len(last)
    grid = x.unflatten(1, (m2, m1))
    inner = torch.bmm(grid.transpose(0, 1), first)
    parts = inner.unflatten(2, (n1, width // n1))
    turned = parts.permute(2, 1, 0, 3)
    y = torch.bmm(turned.flatten(2), last)
    y = y.transpose(0, 1)
    return y.flatten(1)


def matrix(first: Tensor, last: Tensor) -> Tensor:
    """W [O, I] of the factors."""
    m2, m1, _ = first.shape
    n1, _, n2 = last.shape
    into = first.view(m2, m1, n1, -1)
    out = last.view(n1, m2, -1, n2)
    blocks = torch.einsum("abcs,casd->cdab", into, out)
    rows = blocks.flatten(2)
    return rows.flatten(0, 1)


def nearest(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors of the nearest W: each block is cut to its leading singular parts."""
    rows, columns = weight.shape
    m1, m2 = even_factors(columns)
    n1, n2 = even_factors(rows)
    grid = weight.view(n1, n2, m2, m1)
    left, right = halves(grid.transpose(1, 2), rank)
    out = left.mT  # [n1, m2, r, n2]
    into = right.permute(1, 3, 0, 2)  # [m2, m1, n1, r]
    return into.flatten(2), out.flatten(1, 2)


def start_std(inputs: int, outputs: int) -> float:
    """f^-1/2 min(1, sqrt(g / f)) of a factor."""
    widens = min(1.0, outputs / inputs)
    return (widens / inputs) ** 0.5


@method(
    title="Block tensor train (BTT) with a rate for each factor",
    paper="Compute Better Spent: Replacing Dense Layers with Structured Matrices",
    year=2024,
    tags={"factorises"},
)
class BlockTensorTrain(Structured):
    """A block tensor train; see the module's card."""

    factorises = True
    config: Config
    first: nn.Parameter

    def __init__(self, rows: int, columns: int, config: Config, generator: torch.Generator | None = None,
                 std: float | None = None) -> None:
        super().__init__(rows, columns, config)
        m1, m2 = even_factors(columns)
        n1, n2 = even_factors(rows)
        rank = config.rank
        if rank > min(m1, n2):
            raise ValueError(f"rank is {rank} for blocks of {n2} x {m1}, of which a matrix of {rows} x {columns} is "
                             f"made; expected 1 to {min(m1, n2)}")
        shapes = (m2, m1, n1 * rank), (n1, m2 * rank, n2)
        starts = [start_std(inputs, outputs) for _, inputs, outputs in shapes]
        self.starts = starts if std is None else _levelled(starts, std, rank)
        self.rates = [self._rate(inputs) for _, inputs, _ in shapes]
        drawn = zip(NAMES, shapes, self.starts, self.rates)
        for name, shape, start, rate in drawn:
            factor = normal_parameter(shape, generator, start / rate)
            self.register_parameter(name, factor)
            if config.norm:
                gain = nn.Parameter(torch.ones(()))
                self.register_parameter(f"{name}_gain", gain)

    def _rate(self, inputs: int) -> float:
        """How many times as fast as a dense matrix a factor learns."""
        if not self.config.rates:
            return 1.0
        width = self.config.base_dim or self.columns
        return width / (2 * inputs)

    @classmethod
    def from_dense(cls, weight: Tensor, config: Config, generator: torch.Generator) -> Self:
        """The nearest block tensor train of that rank; with `norm`, gains make up for what it cuts."""
        rows, columns = weight.shape
        made = cls(rows, columns, config, generator)
        factors = nearest(weight.double(), config.rank)
        with torch.no_grad():
            for name, factor, rate in zip(NAMES, factors, made.rates):
                own = made.get_parameter(name)
                own.copy_(factor / rate)
                if config.norm:
                    gain = made.get_parameter(f"{name}_gain")
                    gain.copy_(made._excess(factor, name))
        return made

    def factors(self) -> tuple[Tensor, Tensor]:
        """P and Q as they are multiplied with."""
        first, last = map(self._factor, NAMES, self.rates)
        return first, last

    def _factor(self, name: str, rate: float) -> Tensor:
        factor = rate * self.get_parameter(name)
        if not self.config.norm:
            return factor
        gain = self.get_parameter(f"{name}_gain")
        return gain * (factor / self._excess(factor, name))

    def _excess(self, factor: Tensor, name: str) -> Tensor:
        """How many times larger than at its start a factor is, at least 1."""
        start = self.starts[name == "weight"]
        size = factor.square().mean().sqrt()
        return (size / start).clamp_min(1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[..., I] -> [..., O]."""
        first, last = self.factors()
        rows = x.reshape(-1, self.columns)
        y = product(rows, first, last)
        return y.view(*x.shape[:-1], self.rows)

    def dense(self) -> Tensor:
        """W [O, I]."""
        return matrix(*self.factors())

    def flops_per_token(self) -> float:
        """2 r n1 m2 (m1 + n2)."""
        return 2.0 * (self.first.numel() + self.weight.numel())


def _levelled(starts: list[float], std: float, rank: int) -> list[float]:
    """The stds of both factors in their ratio, so that entries of W, sums of r products, have the std asked for."""
    now = starts[0] * starts[1] * rank**0.5
    each = (std / now) ** 0.5
    return [each * start for start in starts]


def example(generator: torch.Generator) -> dict[str, Any]:
    """A matrix of eight by twelve in blocks of rank two."""
    return structured_example(generator, Config(rank=2))
