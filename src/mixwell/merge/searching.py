"""Search of a merge's coefficients under a budget: scattered tries, then steps downhill from the best of them.

What is searched is a box, one side a coefficient; the loss is whatever a caller measures. scipy scatters (Sobol) and
steps (Nelder-Mead).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.merge._parts import each, listed

FINEST = 4  # decimals of a coefficient; more where its side is a tenth or narrower
SCATTERED = 3  # one try in so many is scattered
STEP = 0.25  # of a side, how far the first steps reach
Losses = Callable[[tuple[float, ...]], float]


class Side(NamedTuple):
    """One coefficient that is searched."""

    option: str
    model: int | None  # which model's it is; None: one for all
    low: float
    high: float

    def at(self, share: float) -> float:
        """The value at a share of the side, rounded."""
        width = self.high - self.low
        finer = max(0, -math.ceil(math.log10(width)))
        value = round(self.low + share * width, FINEST + finer)
        return self.inside(value)

    def inside(self, value: float) -> float:
        """The nearest value of the side."""
        found = min(max(value, self.low), self.high)
        return float(found)


class Try(NamedTuple):
    """Coefficients that were tried, and what they came to."""

    values: tuple[float, ...]
    loss: float


@dataclass(frozen=True)
class Space:
    """The coefficients that are searched, in order."""

    sides: tuple[Side, ...]

    def options(self, values: Sequence[float]) -> dict[str, Any]:
        """The method's options at these values."""
        found: dict[str, Any] = {}
        for side, value in zip(self.sides, values, strict=True):
            if side.model is None:
                found[side.option] = value
            else:
                found.setdefault(side.option, []).append(value)
        return found

    def start(self, config: Any) -> tuple[float, ...]:
        """Where a method's options lie in the box, or the nearest point of it; `ValueError` where they are no place."""
        values = [self._own(side, getattr(config, side.option)) for side in self.sides]
        pairs = zip(self.sides, values)
        return tuple(side.inside(value) for side, value in pairs)

    def _own(self, side: Side, stated: Any) -> float:
        """What the options say of a side."""
        if stated is None:
            raise ValueError(f"{side.option} has no number to start from; give one")
        if side.model is None:
            return listed(stated)[0]
        models = sum(other.option == side.option for other in self.sides)
        return each(stated, models, side.option)[side.model]

    def placed(self, shares: Sequence[float]) -> tuple[float, ...]:
        """The values at these shares of the sides."""
        pairs = zip(self.sides, shares, strict=True)
        return tuple(side.at(float(share)) for side, share in pairs)

    def shares(self, values: Sequence[float]) -> list[float]:
        """How far along each side these values lie."""
        pairs = zip(self.sides, values, strict=True)
        return [(value - side.low) / (side.high - side.low) for side, value in pairs]


def space(config: type, vary: Mapping[str, Sequence[float]], shared: Mapping[str, Sequence[float]],
          models: int) -> Space:
    """The box: options of `vary` have a side for each model where the method takes one a model, those of `shared` one.

    Options that are no numbers of the method's, and ranges that are none, raise `MixwellError`.
    """
    kinds = _numbers(config)
    sides: list[Side] = []
    for named, apart in ((vary, True), (shared, False)):
        for option, ends in named.items():
            if option not in kinds:
                known = ", ".join(kinds) or "none"
                raise MixwellError(f"{option!r} is no number that this method takes; expected one of {known}.")
            low, high = _range(option, ends)
            own = apart and kinds[option]
            owners: list[int | None] = [*range(models)] if own else [None]
            sides += [Side(option, owner, low, high) for owner in owners]
    options = [*vary, *shared]
    if not options or len(set(options)) < len(options):
        raise MixwellError("name each option to search once, such as vary weight=0:1 or shared density=0.1:0.9.")
    return Space(tuple(sides))


def _numbers(config: type) -> dict[str, bool]:
    """The options that are numbers, and whether they may be one a model."""
    found = {}
    for option, hint in get_type_hints(config).items():
        union = get_origin(hint) in (Union, UnionType)
        kinds = get_args(hint) if union else (hint,)
        if float in kinds:
            found[option] = any(get_origin(kind) is tuple for kind in kinds)
    return found


def _range(option: str, ends: Sequence[float]) -> tuple[float, float]:
    low, high = map(float, ends)
    if not -np.inf < low < high < np.inf:
        raise MixwellError(f"{option} ranges from {low:g} to {high:g}; expected a smaller number before a larger one.")
    return low, high


def search(loss: Losses, box: Space, start: tuple[float, ...], tries: int, seed: int = 0) -> list[Try]:
    """At most `tries` points of the box with their losses, in the order of trying; `start` is the first.

    A point whose loss is not finite counts as worse than any other. Raises `MixwellError` without scipy.
    """
    try:
        from scipy.optimize import Bounds, minimize
    except ImportError as error:
        raise MixwellError("a search needs SciPy; install mixwell[tables].") from error
    book = _Book(loss, box, tries)
    book.at(start)
    scattered = min(tries - 1, max(len(box.sides), tries // SCATTERED))
    points = _scattered(len(box.sides), seed)
    for shares in itertools.islice(points, scattered):
        book.at(box.placed(shares))
    best = box.shares(book.best.values)
    steps = [min(max(share, 0.0), 1.0) for share in best]
    with contextlib.suppress(_Spent):
        minimize(book, steps, method="Nelder-Mead", bounds=Bounds(0, 1),
                 options={"initial_simplex": _simplex(steps), "adaptive": True, "xatol": 1e-3, "fatol": 1e-5})
    return list(book.tries.values())


class _Spent(Exception):
    """The budget is used up."""


class _Book:
    """Every point that was tried, each measured once."""

    def __init__(self, loss: Losses, box: Space, most: int) -> None:
        self.loss, self.box = loss, box
        self.most = most
        self.tries: dict[tuple[float, ...], Try] = {}

    def __call__(self, shares: Sequence[float]) -> float:
        if len(self.tries) == self.most:
            raise _Spent
        return self.at(self.box.placed(shares))

    def at(self, values: tuple[float, ...]) -> float:
        """The loss at these values."""
        if values not in self.tries:
            found = self.loss(values)
            usable = found if np.isfinite(found) else np.inf
            self.tries[values] = Try(values, float(usable))
        return self.tries[values].loss

    @property
    def best(self) -> Try:
        """The least loss, of which the first counts."""
        return min(self.tries.values(), key=lambda one: one.loss)


def _scattered(sides: int, seed: int) -> Iterator[Sequence[float]]:
    from scipy.stats import qmc

    draws = qmc.Sobol(sides, seed=seed)
    while True:
        yield from draws.random(8)


def _simplex(corner: Sequence[float]) -> np.ndarray:
    """The corner, and one step along each side from it, inside the box."""
    start = np.asarray(corner)
    inwards = np.where(start > 0.5, -STEP, STEP)
    steps = start + np.diag(inwards)
    return np.vstack([start, steps])
