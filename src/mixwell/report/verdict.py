"""Who won: branches of a run compared at an equal budget of tokens, FLOPs or seconds, with the noise of the curves.

At the largest budget that every branch reached, each loss curve is fitted by a straight line through its nearest
points: its value there is the loss, the half-width of its 95 % interval the noise. Where two curves were measured
at the same budgets (the same batches, usually) the line is fitted through their differences, which cancels what they
share. A gap within the noise is no difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixwell.core import units

BUDGETS = {"tokens": "", "flops": "FLOP", "seconds": "s"}  # budget -> its unit
NAMES = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}
MIN_POINTS = 4  # fewer leave a straight line no degrees of freedom to judge it by


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The loss of one branch against what it had spent since the branches parted."""

    name: str
    spent: Mapping[str, Sequence[float]]  # budget -> cumulative amount at each point, rising
    loss: Sequence[float]
    lr: Sequence[float] = ()  # learning rate at each point


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The standing of all branches at one equal budget; lower is better."""

    budget: str  # tokens, flops or seconds
    at: float = math.nan  # the budget each branch was given
    standings: tuple[tuple[str, float], ...] = ()  # (name, loss), best first
    noise: float = math.nan  # half-width of the 95 % interval of the gap between the first two
    winner: str = ""  # empty: no clear difference, or not comparable
    obstacle: str = ""  # why no comparison was possible
    caveats: tuple[str, ...] = ()

    @property
    def gap(self) -> float:
        """How much lower the first loss is than the second."""
        return self.standings[1][1] - self.standings[0][1]

    @property
    def amount(self) -> str:
        """The budget each branch was given, with its unit."""
        return units.seconds(self.at) if self.budget == "seconds" else units.si(self.at, BUDGETS[self.budget])


def judge(curves: Sequence[Curve], budget: str) -> Verdict:
    """Compare `curves` at the largest `budget` that all of them reached."""
    if len(curves) < 2:
        return Verdict(budget=budget, obstacle="there is one branch only")
    points = {curve.name: _points(curve, budget) for curve in curves}
    for name, (x, _) in points.items():
        if len(x) < MIN_POINTS:
            return Verdict(budget=budget, obstacle=f"of {MIN_POINTS} points of loss against {NAMES[budget]} that are "
                                                   f"needed, {name} recorded {len(x) or 'none'}")
    at = min(float(x[-1]) for x, _ in points.values())
    for name, (x, _) in points.items():
        if float(x[0]) > at:
            return Verdict(budget=budget, obstacle=f"at its first measurement, {name} had spent more {NAMES[budget]} "
                                                   "than another branch in all")
    ranked = sorted(points, key=lambda name: fit_at(*points[name], at)[0])
    gap, noise = _gap(points[ranked[1]], points[ranked[0]], at)
    standings = tuple((name, fit_at(*points[name], at)[0]) for name in ranked)
    return Verdict(budget=budget, at=at, standings=standings, noise=noise, winner=ranked[0] if gap > noise else "",
                   caveats=_schedule_caveat(curves, budget, at))


def fit_at(x: np.ndarray, y: np.ndarray, at: float) -> tuple[float, float]:
    """Value at `at` of the least-squares line through the nearest 15 % of the points (five or more), and the
    half-width of its 95 % interval."""
    count = min(len(x), max(5, round(0.15 * len(x))))
    near = np.argsort(np.abs(x - at), kind="stable")[:count]
    u, v = x[near] - at, y[near]
    u_mean, spread = u.mean(), float(((u - u.mean()) ** 2).sum())
    slope = float(((u - u_mean) * v).sum()) / spread if spread > 0 else 0.0
    value = float(v.mean() - slope * u_mean)
    residual = v - value - slope * u
    variance = float((residual**2).sum()) / max(count - 2, 1)
    error = math.sqrt(variance * (1 / count + (u_mean**2 / spread if spread > 0 else 0.0)))
    return value, student(max(count - 2, 1)) * error


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by Cornish and Fisher's expansion: 1 % off at three degrees of freedom and
    nearer above. Few points make a residual that is small by luck; this is what it costs."""
    z = 1.959964
    return (z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3))


def _points(curve: Curve, budget: str) -> tuple[np.ndarray, np.ndarray]:
    """The finite points of a curve as arrays, by rising budget."""
    pairs = zip(curve.spent.get(budget, ()), curve.loss)
    finite = sorted((x, y) for x, y in pairs if units.is_number(x) and units.is_number(y))
    array = np.array(finite, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _gap(worse: tuple[np.ndarray, np.ndarray], better: tuple[np.ndarray, np.ndarray], at: float) -> tuple[float, float]:
    """`worse - better` at `at` with the half-width of its interval, from paired differences where the budgets agree."""
    if len(worse[0]) == len(better[0]) and np.array_equal(worse[0], better[0]):
        return fit_at(worse[0], worse[1] - better[1], at)
    (a, half_a), (b, half_b) = fit_at(*worse, at), fit_at(*better, at)
    return a - b, math.hypot(half_a, half_b)


def _schedule_caveat(curves: Sequence[Curve], budget: str, at: float) -> tuple[str, ...]:
    """A branch cut off before its learning rate came down looks worse than it is; say so."""
    left = {}
    for curve in curves:
        pairs = [(x, r) for x, r in zip(curve.spent[budget], curve.lr) if units.is_number(x) and units.is_number(r)]
        if not pairs or max(r for _, r in pairs) <= 0:
            return ()
        left[curve.name] = min(pairs, key=lambda p: abs(p[0] - at))[1] / max(r for _, r in pairs)
    low, high = min(left, key=left.__getitem__), max(left, key=left.__getitem__)
    if left[high] < 2 * max(left[low], 1e-9):
        return ()
    return (f"there the learning rate of {low} stood at {units.percent(left[low], 0)} of its peak and that of {high} "
            f"at {units.percent(left[high], 0)}, which favours {low}",)
