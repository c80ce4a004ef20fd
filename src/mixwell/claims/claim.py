"""A claim as it is declared: what is compared with what, by which margin, under which conditions, how it is tuned.

A trial gives numbers for every side at one seed; with several quantities a side gives them by name:

    {"method": 0.12, "baseline": 0.15}
    {"method": {"dropped": 0.02, "error": 0.3}, "baseline": {"dropped": 0.08, "error": 0.3}}

They are kept as series, `method` or `method error`, one number a seed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mixwell.claims.premise import Untestable as Untestable  # declared here for the claims' files
from mixwell.core import units
from mixwell.core.errors import suggest

if TYPE_CHECKING:
    from mixwell.claims.bench import Bench

Measured = float | Mapping[str, float]  # one number, or several by the name of their quantity
Numbers = Mapping[str, Measured]  # side -> what was measured there
Series = Mapping[str, Sequence[float]]  # name -> one number a seed
Setting = Mapping[str, Any]
METHOD, BASELINE = "method", "baseline"
FEWEST = 3  # values of a learning rate that are tried


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One series against another or against a number, seed by seed; the gain is positive where the first is better."""

    quantity: str = ""  # empty where a side is one number
    method: str = METHOD
    baseline: str | float = BASELINE
    lower_is_better: bool = True
    at_least: float = 0.0  # the gain that is asked for; below zero: how much worse the method may be
    relative: bool = False  # gains as shares of the baseline

    def gains(self, values: Series) -> list[float]:
        """The gain at each seed; a series that is not there, or a share of nothing, raises `ValueError`."""
        ours = self._series(self.method, values)
        theirs = self._against(len(ours), values)
        sign = -1.0 if self.lower_is_better else 1.0
        gains = [sign * (our - their) for our, their in zip(ours, theirs)]
        if not self.relative:
            return gains
        if 0.0 in theirs:
            raise ValueError(f"{self.words()}: the baseline is zero, of which there are no shares; say relative=False")
        return [gain / abs(their) for gain, their in zip(gains, theirs)]

    def _against(self, count: int, values: Series) -> list[float]:
        if isinstance(self.baseline, str):
            return self._series(self.baseline, values)
        return [float(self.baseline)] * count

    def _series(self, side: str, values: Series) -> list[float]:
        name = series_name(side, self.quantity)
        if name not in values:
            known = ", ".join(values)
            raise ValueError(f"the trial gives no {name!r}; it gives {known}.{suggest(name, values)}")
        return list(values[name])

    def words(self) -> str:
        """`error against k-means`, `method against baseline`."""
        usual = (self.method, self.baseline) == (METHOD, BASELINE)
        if self.quantity and usual:
            return self.quantity
        named = isinstance(self.baseline, str)
        baseline = self.baseline if named else units.number(self.baseline)
        sides = f"{self.method} against {baseline}"
        return f"{self.quantity}, {sides}" if self.quantity else sides


def no_worse(quantity: str = "", margin: float = 0.01, *, relative: bool = True, **other: Any) -> Comparison:
    """The condition that a quantity is worse by less than `margin`, a share of the baseline's or a difference.

    No margin, no condition: seeds cannot show that two quantities are equal.
    """
    if margin <= 0:
        raise ValueError(f"margin is {margin}; expected how much worse the method may be, above zero")
    return Comparison(quantity=quantity, at_least=-margin, relative=relative, **other)


@dataclass(frozen=True)
class Side:
    """How one side is measured: `measure(bench, seed, **options)`, options of a grid chosen before.

    Every setting of the grid is tried on the tuning seed alone, and the best is kept for the seeds that count.
    """

    measure: Callable[..., Measured]
    options: Setting = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def settings(self) -> list[dict[str, Any]]:
        """Every setting of the grid as plain data, one without entries where there is none."""
        names = list(self.grid)
        products = itertools.product(*self.grid.values())
        settings = [dict(zip(names, values)) for values in products]
        return json.loads(json.dumps(settings))

    def __call__(self, bench: Bench, seed: int, setting: Setting) -> Measured:
        """What is measured at one seed with one setting, which replaces options of the same names."""
        options = {**self.options, **setting}
        return self.measure(bench, seed, **options)


@dataclass(frozen=True)
class Claim(Comparison):
    """A paper's claim: its sentence in our words, the metric with its unit, and the comparison that it stands on.

    `provided` are the conditions that have to hold as well. `sides` says how the sides are measured where they are
    tuned; without them the claim's file has a `trial(bench, seed)` that gives the numbers of all sides.
    """

    text: str = field(kw_only=False)
    metric: str = field(kw_only=False)
    provided: tuple[Comparison, ...] = ()
    sides: Mapping[str, Side] = field(default_factory=dict)
    tuned_by: str | None = None  # the quantity that chooses settings; by default the claim's own

    def __post_init__(self) -> None:
        tuned = {name: side for name, side in self.sides.items() if side.grid}
        tries = {name: len(side.settings()) for name, side in tuned.items()}
        numbers = set(tries.values())
        if len(numbers) > 1:
            raise ValueError(f"unequal tries: {tries}; expected as many settings of each side that is tuned")
        for name in (METHOD, BASELINE):
            if tries and name not in tries:
                raise ValueError(f"the {name} has no grid; expected both sides tuned or neither")
        for name, side in tuned.items():
            rates = side.grid.get("lr")
            if rates is not None and len(rates) < FEWEST:
                raise ValueError(f"the {name} has {len(rates)} learning rates; expected {FEWEST} or more")

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The claim's own, then its conditions."""
        return self, *self.provided

    def score(self, measured: Measured) -> float:
        """What settings are chosen by, the lower the better."""
        quantity = self.quantity if self.tuned_by is None else self.tuned_by
        value = flat({"": measured})[quantity]
        return value if self._falls(quantity) else -value

    def _falls(self, quantity: str) -> bool:
        """Whether a quantity is better the lower it is, as the claim or a condition says; the claim's way otherwise."""
        known = {one.quantity: one.lower_is_better for one in self.comparisons}
        return known.get(quantity, self.lower_is_better)


def series_name(side: str, quantity: str) -> str:
    """`method`, `method error`."""
    return f"{side} {quantity}".strip()


def flat(numbers: Numbers) -> dict[str, float]:
    """The numbers of a trial by the name of their series."""
    found = {}
    for side, measured in numbers.items():
        parts = measured if isinstance(measured, Mapping) else {"": measured}
        for quantity, value in parts.items():
            found[series_name(side, quantity)] = float(value)
    return found
