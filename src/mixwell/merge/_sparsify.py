"""Which entries of a model's changes are kept: decided on whole tensors, applied piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.merge._order import at_rank
from mixwell.merge.reading import pieces_of

WORDS = 2**32
SMALL = 1e-7  # sums of |d| that nothing is divided by


class Trim(NamedTuple):
    """How one model's changes are trimmed."""

    density: float  # share kept
    gamma: float  # share of the largest dropped (outliers)
    epsilon: float  # half the spread of probabilities (ranked)
    rescale: bool  # whether sum |d| is restored


class Kept(Protocol):
    """What is kept of one tensor's changes."""

    def of(self, delta: Tensor) -> Tensor:
        """The changes with all others zero, rescaled; pieces come in their order."""


class Everything:
    """All entries."""

    def of(self, delta: Tensor) -> Tensor:
        """The changes as they are."""
        return delta


@dataclass
class Span:
    """Entries whose |d| lies between two numbers, both of them included."""

    below: float  # the largest number that is less than those kept
    most: float
    factor: float = 1.0

    def of(self, delta: Tensor) -> Tensor:
        """The changes within."""
        if self.below == math.inf:
            return torch.zeros_like(delta)
        kept = F.hardshrink(delta, self.below)
        if self.most < math.inf:
            kept *= delta.abs() <= self.most
        return _scaled(kept, self.factor)


@dataclass
class Stored:
    """Entries that a mask names, of which each piece takes its own part."""

    kept: Tensor  # bool, flat
    factor: float = 1.0
    place: int = field(default=0, init=False)

    def of(self, delta: Tensor) -> Tensor:
        """The changes that the next part of the mask names."""
        start = self.place
        self.place += delta.numel()
        kept = _counted(self.kept[start : self.place])
        delta *= kept.view(delta.shape)
        return _scaled(delta, self.factor)


def _counted(kept: Tensor) -> Tensor:
    """A mask as 0 and 1: products with bool are several times slower."""
    return kept.view(torch.uint8)


def _scaled(delta: Tensor, factor: float) -> Tensor:
    return delta if factor == 1.0 else delta.mul_(factor)


def _factor(before: float, after: float) -> float:
    """What restores a sum of sizes; 1 where one of the sums is nothing."""
    if min(before, after) < SMALL:
        return 1.0
    return before / after


def _span(sizes: Tensor, start: int, count: int, rescale: bool) -> Span:
    """`count` sizes from the place `start` on in ascending order, with all that equal the first or the last."""
    if count <= 0:
        return Span(math.inf, math.inf)
    flat = sizes.view(-1)
    last = start + count - 1
    numbers = flat.numpy()
    topmost = last == numbers.size - 1
    least = at_rank(numbers, start)
    most = math.inf if topmost else float(at_rank(numbers, last))
    below = np.nextafter(least, numbers.dtype.type(0))
    found = Span(float(below), most)
    if rescale:
        before = float(flat.sum())
        kept = found.of(flat)
        found.factor = _factor(before, float(kept.sum()))
    return found


def magnitude(sizes: Tensor, trim: Trim, generator: torch.Generator) -> Kept:
    """The largest |d|, at least one of them."""
    whole = sizes.numel()
    share = int(trim.density * whole)
    count = max(1, share) if trim.density > 0 else 0
    start = whole - count
    return _span(sizes, start, count, trim.rescale)


def outliers(sizes: Tensor, trim: Trim, generator: torch.Generator) -> Kept:
    """The largest |d| below the very largest ones."""
    whole = sizes.numel()
    count = int(trim.density * whole)
    dropped = int(trim.gamma * whole)
    start = max(0, whole - count - dropped)
    return _span(sizes, start, count, trim.rescale)


def random(sizes: Iterable[Tensor], count: int, trim: Trim, generator: torch.Generator) -> Kept:
    """Each of `count` entries with the probability `density`; their |d| come in pieces.

    32 bits decide about an entry, two entries a draw, so that pieces of any even length meet the same draws.
    """
    bits = np.random.SFC64(_seed(generator))
    limit = np.uint32(min(round(trim.density * WORDS), WORDS - 1))
    found = Stored(torch.empty(count, dtype=torch.bool))
    start, before, left = 0, 0.0, 0.0
    for piece in sizes:
        end = start + len(piece)
        kept = found.kept[start:end]
        draws = drawn(bits, len(piece))
        np.less(draws, limit, out=kept.numpy())
        if trim.rescale:
            before += float(piece.sum())
            piece *= _counted(kept)
            left += float(piece.sum())
        start = end
    if trim.rescale:
        found.factor = _factor(before, left)
    return found


def drawn(bits: np.random.SFC64, count: int) -> np.ndarray:
    """So many whole numbers below 2^32."""
    pairs = (count + 1) // 2
    words = bits.random_raw(pairs).view(np.uint32)
    return words[:count]


def _seed(generator: torch.Generator) -> int:
    drawn = torch.randint(0, 2**62, (), generator=generator)
    return int(drawn)


def probabilities(sizes: Tensor, trim: Trim) -> Tensor:
    """Of each number to be kept, by the rank of |d| in its row [rows, L]."""
    low, high = trim.density - trim.epsilon, trim.density + trim.epsilon
    if not (low > 0 and high < 1):
        raise ValueError(f"density {trim.density:g} with epsilon {trim.epsilon:g}: expected density - epsilon above 0 "
                         "and density + epsilon below 1")
    order = sizes.argsort(dim=1, stable=True)
    ranks = order.argsort(dim=1)
    last = sizes.shape[1] - 1
    shares = ranks / last if last else torch.ones_like(sizes)
    spread = high - low
    return low + spread * shares


def ranked(sizes: Tensor, trim: Trim, generator: torch.Generator) -> Kept:
    """Large |d| with a higher probability than small ones of their row, the second axis."""
    rows = sizes.unsqueeze(0) if sizes.ndim < 2 else sizes
    draws = torch.rand(rows.shape, generator=generator)
    kept = draws < probabilities(rows, trim)
    found = Stored(kept.view(-1))
    if trim.rescale:
        left = rows * kept
        found.factor = _factor(float(rows.sum()), float(left.sum()))
    return found


SPARSIFIERS: dict[str, Callable[[Tensor, Trim, torch.Generator], Kept]] = {
    "magnitude": magnitude, "outliers": outliers, "ranked": ranked}


def decided(tensors: Sequence[Tensor], place: int, base: Tensor, sparsify: str, trim: Trim,
            generator: torch.Generator) -> Kept:
    """What is kept of the changes of one of the tensors."""
    if trim.density <= 0 and sparsify != "magnitude":
        return Span(math.inf, math.inf)
    if sparsify == "random":
        return random(_sizes(tensors, place, base), base.numel(), trim, generator)
    sizes = tensors[place] - base
    return SPARSIFIERS[sparsify](sizes.abs_(), trim, generator)


def _sizes(tensors: Sequence[Tensor], place: int, base: Tensor) -> Iterator[Tensor]:
    """|d| piece by piece."""
    ground, start = base.reshape(-1), 0
    for piece in pieces_of(tensors, place):
        end = start + len(piece)
        change = piece - ground[start:end]
        yield change.abs_()
        start = end
