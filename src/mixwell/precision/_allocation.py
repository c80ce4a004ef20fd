"""Which bits where: one width for each part of a model, the least harm within a budget of bits.

Legend: U parts, B widths, S sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

FINEST = 16384  # sizes that a frontier tells apart; finer ones are rounded up

Limit = tuple[Tensor, float]  # amounts [U, B], and how much of them there may be in all


def allocate(harm_UB: Tensor, size_UB: Tensor, budget: float, also: Sequence[Limit] = ()) -> list[int]:
    """The width of each part [U], as a place in B: sum of harm least, sum of sizes within the budget.

    also: further limits that sums must keep. Exact, by an integer program. Raises ValueError where even the smallest
    sizes exceed the budget, or no widths keep all limits.
    """
    check_budget(size_UB, budget)
    units, widths = harm_UB.shape
    most = float(harm_UB.abs().max())
    cost = harm_UB.double().numpy().ravel() / (most or 1.0)  # in the range that the solver's tolerance is meant for
    one_each = np.kron(np.eye(units), np.ones(widths))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for amount_UB, limit in ((size_UB, budget), *also):
        constraints.append(_at_most(amount_UB, limit))
    options = {"mip_rel_gap": 0.0}
    whole = np.ones(units * widths)
    bounds = Bounds(0, 1)
    found = milp(cost, integrality=whole, bounds=bounds, constraints=constraints, options=options)
    if found.x is None:
        raise ValueError(f"the solver found no widths: {found.message}")
    chosen = found.x.reshape(units, widths)
    return chosen.argmax(1).tolist()


def _at_most(amount_UB: Tensor, limit: float) -> LinearConstraint:
    total = amount_UB.double().numpy()
    row = total.reshape(1, -1) / limit
    return LinearConstraint(row, -np.inf, 1 + 1e-12)


def check_budget(size_UB: Tensor, budget: float) -> None:
    """Raise ValueError where even the smallest sizes exceed the budget."""
    least = float(size_UB.min(1).values.sum())
    if least > budget:
        raise ValueError(f"the budget is {budget:.6g}; the smallest widths take {least:.6g}")


@dataclass(frozen=True)
class Mix:
    """One width for each part."""

    size: float
    harm: float
    choice: tuple[int, ...]  # places in B


def frontier(harm_UB: Tensor, size_UB: Tensor, finest: int = FINEST) -> list[Mix]:
    """The mixes that no other beats in size and harm, smallest first, by dynamic programming over the parts.

    Exact where sizes are whole multiples of one that occurs `finest` times at most over all; else sizes are rounded
    up to as many steps, so that a mix may be missed but none is larger than it says.
    """
    size = size_UB.double().numpy()
    harm = harm_UB.double().numpy()
    steps_UB = _steps(size, finest)
    count = int(steps_UB.max(1).sum()) + 1
    best_S = np.full(count, np.inf)
    best_S[0] = 0.0
    taken = np.zeros((len(harm), count), dtype=np.int8)
    for unit, steps_B in enumerate(steps_UB):
        best_S, taken[unit] = _extended(best_S, steps_B, harm[unit])
    found = []
    for place in np.flatnonzero(np.isfinite(best_S)):
        choice = _traced(taken, steps_UB, int(place))
        found.append(_mix(choice, size, harm))
    return _unbeaten(found)


def _steps(size_UB: np.ndarray, finest: int) -> np.ndarray:
    """Sizes above each part's least in whole steps, int64."""
    least_U1 = size_UB.min(1, keepdims=True)
    above_UB = np.ceil(size_UB - least_U1)
    whole_UB = above_UB.astype(np.int64)
    every = whole_UB.ravel().tolist()
    unit = math.gcd(*every) or 1
    most = int(whole_UB.max(1).sum())
    coarser = math.ceil(most / unit / finest)
    step = unit * max(1, coarser)
    return -(-whole_UB // step)


def _extended(best_S: np.ndarray, steps_B: np.ndarray, harm_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least harm at each size with one more part, and the width that this part then has."""
    least = np.full_like(best_S, np.inf)
    taken = np.zeros(len(best_S), dtype=np.int8)
    for width, (step, harm) in enumerate(zip(steps_B, harm_B)):
        own = np.full_like(best_S, np.inf)
        own[step:] = best_S[: len(best_S) - step] + harm
        better = own < least
        least[better] = own[better]
        taken[better] = width
    return least, taken


def _traced(taken: np.ndarray, steps_UB: np.ndarray, place: int) -> tuple[int, ...]:
    """The widths that led to a size."""
    found = []
    for unit in reversed(range(len(taken))):
        width = int(taken[unit, place])
        found.append(width)
        place -= int(steps_UB[unit, width])
    return tuple(reversed(found))


def _mix(choice: tuple[int, ...], size_UB: np.ndarray, harm_UB: np.ndarray) -> Mix:
    rows = np.arange(len(choice))
    sizes, harms = size_UB[rows, choice], harm_UB[rows, choice]
    size, harm = sizes.sum(), harms.sum()
    return Mix(float(size), float(harm), choice)


def _unbeaten(found: list[Mix]) -> list[Mix]:
    kept: list[Mix] = []
    for mix in sorted(found, key=lambda one: (one.size, one.harm)):
        if not kept or mix.harm < kept[-1].harm:
            kept.append(mix)
    return kept


def within(mixes: Sequence[Mix], budget: float) -> Mix:
    """The mix of least harm within the budget. Raises ValueError where the smallest exceeds it."""
    least = mixes[0].size
    if least > budget:
        raise ValueError(f"the budget is {budget:.6g}; the smallest widths take {least:.6g}")
    fitting = [mix for mix in mixes if mix.size <= budget]
    return fitting[-1]
