"""Maestro: factors whose columns are ordered in training, so that they can be cut at any rank afterwards.

**Equation:** W x = U_{:b} V_{:b} x; each step one matrix of the model, drawn, has b columns, drawn, and the others have
    all. lam sum_b (||U_{b:}||_F + ||V_{b:}||_F) joins the loss, which empties the last columns first. Columns with
    ||U_b|| ||V_b|| below a threshold stay out for good. Start: `halves` of a dense start, at full rank.
**Shapes:** x [..., I]; U (weight) [O, R], V (right) [R, I], R = min(O, I) by default; kept [R] of 0 and 1.
**Reference:** Horvath et al. 2023 (2308.14929), algorithm 1, and its code.
**Differs:** inside a model it is the code's way without a full pass: which matrix and how many columns is read off the
    step number, by one shuffled list of all pairs a round. `distilled_loss` is the other way, a full pass and a cut one
    that follows it, for a training loop that calls the model twice. Columns are looked at every `every` steps, not
    after each epoch.
**Fails when:** singular values are equal: their order is then nobody's. Few steps for many pairs: columns go unseen.
    Matrices of unlike rank: each reads a list of its own length, so that two or none may be cut in a step.
**Cost:** 2 R (O + I) FLOPs a row; `cut` needs no training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.core.rng import generator as seeded
from mixwell.core.routing import Context
from mixwell.kernels.linear import linear
from mixwell.mixing import check_least, check_not_negative
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
    """Options of Maestro's factors."""

    rank: int = 0  # R, columns at the start; 0: all, the smaller of O and I
    ranks: tuple[int, ...] | None = None  # of each matrix of a layer in turn, where they were cut
    sampled: bool = True  # draw a matrix and its columns each step; False trains all columns always
    penalty: float = 1e-5  # lam, of the tails' norms; 0 or more
    threshold: float = 1e-5  # columns whose norms' product is below it go; 0 keeps all
    every: int = 100  # steps between two looks at the columns
    seed: int = 0  # of the shuffled list of pairs, one for the whole model

    def __post_init__(self) -> None:
        check_least(self, rank=0, every=1)
        check_not_negative(self, "penalty", "threshold")


def tail_norms(left: Tensor, right: Tensor) -> Tensor:
    """sum_b (||U_{b:}||_F + ||V_{b:}||_F), b from the first column; a tail of zeros has gradient 0."""
    return _tails(left.T) + _tails(right)


def _tails(parts_RN: Tensor) -> Tensor:
    squares = parts_RN.square().sum(1)
    tails = squares.flip(0).cumsum(0)
    alive = tails[tails > 0]  # the root of 0 has no gradient
    return alive.sqrt().sum()


def drawn_pair(step: int, pairs: int, seed: int) -> int:
    """Which of so many pairs a step has: each comes once in a round, in an order drawn for the round."""
    turn, place = divmod(step, pairs)
    draws = seeded(seed, "maestro", turn)
    order = torch.randperm(pairs, generator=draws)
    return int(order[place])


def distilled_loss(run: Callable[[], Tensor], matrices: Sequence[Maestro], chosen: tuple[int, int],
                   labels: Tensor) -> Tensor:
    """Cross-entropy of a full pass, and that of one with a matrix cut against the full one's softmax.

    run: a forward pass that gives logits [N, C]; chosen: (which of the matrices, how many columns); labels int64 [N].
    """
    whole = run()
    soft = whole.detach().softmax(-1)
    which, columns = chosen
    with matrices[which].limited(columns):
        part = run()
    return F.cross_entropy(whole, labels) + F.cross_entropy(part, soft)


@method(
    title="Maestro: ordered low rank",
    paper="Maestro: Uncovering Low-Rank Structures via Trainable Decomposition",
    year=2023,
    tags={"factorises"},
)
class Maestro(Ranked):
    """Ordered factors; see the module's card."""

    factorises = True
    config: Config
    kept: Tensor
    steps: Tensor

    def __init__(self, rows: int, columns: int, config: Config, generator: torch.Generator | None = None,
                 std: float | None = None) -> None:
        super().__init__(rows, columns, config)
        rank = config.rank or min(rows, columns)
        check_rank(rank, rows, columns)
        left, right = drawn_halves(rows, columns, rank, self.own_std(std), generator)
        self.weight = parameter(left)
        self.right = parameter(right)
        self.register_buffer("kept", torch.ones(rank))
        none = torch.zeros((), dtype=torch.int64)
        self.register_buffer("steps", none)
        self.limit: int | None = None  # columns that a pass takes, where somebody set them

    @classmethod
    def from_dense(cls, weight: Tensor, config: Config, generator: torch.Generator) -> Self:
        """The leading singular parts in their order."""
        rows, columns = weight.shape
        made = cls(rows, columns, config, generator)
        left, right = halves(weight.double(), made.rank)
        with torch.no_grad():
            made.weight.copy_(left)
            made.right.copy_(right)
        return made

    @property
    def rank(self) -> int:
        """R, columns with those that went."""
        return len(self.right)

    @contextmanager
    def limited(self, columns: int) -> Iterator[None]:
        """A block in which it has so many columns."""
        check_rank(columns, self.rows, self.columns)
        before = self.limit
        self.limit = columns
        try:
            yield
        finally:
            self.limit = before

    def cut(self, columns: int) -> tuple[Tensor, Tensor]:
        """(U [O, b], V [b, I]) of the first columns, those that went as zeros."""
        left = self.weight * self.kept
        return left[:, :columns], self.right[:columns]

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """U_{:b} V_{:b} x: [..., I] -> [..., O]; in training b is drawn where it is this matrix's turn."""
        left, right = self.cut(self._columns(context))
        return linear(linear(x, right), left.to(x.dtype))

    def _columns(self, context: Context) -> int:
        if self.limit is not None:
            return self.limit
        training = self.training and context.generator is not None
        if not (training and self.config.sampled):
            return self.rank
        own = context.layer * self.places + self.place
        matrices = context.num_layers * self.places
        pair = drawn_pair(context.step, matrices * self.rank, self.config.seed)
        which, before = divmod(pair, self.rank)
        return before + 1 if which == own else self.rank

    def dense(self) -> Tensor:
        """U V [O, I] of all columns."""
        left, right = self.cut(self.rank)
        return left @ right

    def penalty(self) -> Tensor | None:
        """lam times the tails' norms."""
        if not self.config.penalty:
            return None
        return self.config.penalty * tail_norms(self.weight, self.right)

    @torch.no_grad()
    def after_step(self) -> None:
        """Let columns go whose norms' product is below the threshold, never the first one."""
        self.steps += 1
        if int(self.steps) % self.config.every:
            return
        sizes = self.weight.norm(dim=0) * self.right.norm(dim=1)
        small = sizes < self.config.threshold
        small[0] = False
        self.kept[small] = 0

    def flops_per_token(self) -> float:
        """2 R (O + I) of the columns that are kept."""
        each = self.rows + self.columns
        kept = self.rank if self.kept.is_meta else int(self.kept.sum())
        return 2.0 * kept * each


def example(generator: torch.Generator) -> dict[str, Any]:
    """A matrix of eight by twelve in five ordered columns."""
    return structured_example(generator, Config(rank=5))
