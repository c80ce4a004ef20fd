"""Weights of rows: how many rows one stands for, or how much of a population."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixwell.core.errors import MixwellError, suggest
from mixwell.tables.columns import numbers
from mixwell.tables.reading import Table

FREQUENCIES = "frequencies"  # whole numbers: a row of weight 3 is three rows
SURVEY = "survey weights"  # scaled to a mean of one, so that the table has as many rows as it has


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of a table's rows (N,), the column that they come from, and what they are."""

    column: str
    kind: str
    each_N: np.ndarray

    @property
    def note(self) -> str:
        """What was done with them, in a few words."""
        if self.kind == FREQUENCIES:
            return f"frequencies of the rows, {self.each_N.sum():.0f} in all"
        return "survey weights of the rows, scaled to a mean of one"


def weights_of(table: Table, column: str) -> Weights:
    """The weights in a column; a `MixwellError` where one is missing or negative, or all are zero."""
    names = list(table.frame.columns)
    if column not in names:
        raise MixwellError(f"there is no column {column!r} of weights.{suggest(column, names)}")
    each_N = numbers(table, column, table.frame[column])
    bad_N = np.isnan(each_N) | (each_N < 0)
    if bad_N.any():
        row = table.row(int(bad_N.argmax()))
        raise MixwellError(f"the weight {column!r} is missing or negative in {row}; expected 0 or more in every row.")
    if not each_N.any():
        raise MixwellError(f"all weights in {column!r} are zero; expected some above 0.")
    if (each_N % 1 == 0).all():
        return Weights(column, FREQUENCIES, each_N)
    positive = each_N[each_N > 0]
    return Weights(column, SURVEY, each_N / positive.mean())
