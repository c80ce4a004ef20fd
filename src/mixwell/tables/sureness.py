"""How sure a fit's numbers are: intervals of weights, means and shares by the information matrix, in the data's units.

N rows, K components, C categories, P free numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mixwell.density.selection.information import interval, standard_errors
from mixwell.tables.columns import decode
from mixwell.tables.kinds import CATEGORY, COUNT
from mixwell.tables.model import FittedMixture

LEVEL = 0.95
MOST_NUMBERS = 1000  # P; beyond it the information takes minutes
VALUES = 4_000_000  # P times the rows that are looked at
ROWS_A_NUMBER = 5  # rows that are looked at, at least, for each of P


@dataclass(frozen=True, eq=False)
class Sureness:
    """Intervals (low and high first) by what they are of; empty where there are none, and why."""

    weights_2K: np.ndarray | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # of means (2, K), of shares (2, K, C)
    why_not: str = ""


def sureness(fitted: FittedMixture, x_ND: np.ndarray, weights_N: np.ndarray | None) -> Sureness:
    """Intervals of a fit to encoded rows (N, D)."""
    model = fitted.estimator
    numbers = model._n_parameters()
    if numbers > MOST_NUMBERS:
        return Sureness(why_not=f"No intervals: the model has {numbers} free numbers.")
    rows = max(ROWS_A_NUMBER * numbers, VALUES // max(numbers, 1))
    stride = max(1, len(x_ND) // rows)
    weights_N = np.ones(len(x_ND)) if weights_N is None else weights_N
    each_N = weights_N[::stride]
    share = weights_N.sum() / each_N.sum()  # every row that is looked at stands for some
    try:
        errors = standard_errors(model, x_ND[::stride], each_N * share)
    except ValueError:
        return Sureness(why_not=f"No intervals: the rows do not tell all {numbers} free numbers apart.")
    weights_2K = None
    if "weights_" in errors:
        weights_2K = interval("weights_", model.weights_, errors["weights_"], LEVEL)
    return Sureness(weights_2K, _by_column(fitted, errors))


def _by_column(fitted: FittedMixture, errors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Intervals of what a component is like in each column."""
    found = {}
    for number, block in enumerate(fitted.estimator.blocks_):
        name = _centres(block.kind, block.estimator)
        error = errors.get(f"block_{number}.{name}")
        if error is None:
            continue
        value = getattr(block.estimator, name)
        ends = interval(name, value, error, LEVEL)
        parts = np.split(ends, _bounds(block.kind, block.sizes, len(block.columns)), axis=-1)
        for place, part in zip(block.columns, parts):
            column = fitted.used[place]
            own = part if block.kind == CATEGORY else decode(column, part[..., 0])
            found[column.name] = own
    return found


def _centres(kind: str, estimator: object) -> str:
    """The attribute that says where a component lies."""
    if kind == CATEGORY:
        return "_flat_probabilities"
    return "rates_" if kind == COUNT and hasattr(estimator, "rates_") else "means_"


def _bounds(kind: str, sizes: tuple[int, ...], columns: int) -> np.ndarray:
    """Where the entries of one column end and those of the next begin."""
    each = sizes if kind == CATEGORY else (1,) * columns
    return np.cumsum(each)[:-1]
