"""Tables of runs: columns as arrays of numbers, checked before anything is fitted to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError, shown, suggest

Runs = Mapping[str, np.ndarray]


def columns_of(table: Any) -> list[str]:
    """Names of a table's columns: a mapping, or a data frame of pandas, polars or pyarrow."""
    if isinstance(table, Mapping):
        return list(map(str, table))
    names = getattr(table, "column_names", None)  # pyarrow
    return list(map(str, table.columns if names is None else names))


def read(table: Any, names: Iterable[str], *, positive: bool = True) -> dict[str, np.ndarray]:
    """Columns of a table as float64 [N], one number for each run; a single number counts as one run.

    A column that is missing, of another length, or with a value that is not finite (or not above 0, where asked)
    raises `MixwellError`.
    """
    found = {name: _column(table, name) for name in names}
    longest = max(map(len, found.values()), default=0)
    for name, column_N in found.items():
        count = len(column_N)
        if count == 1:
            column_N = np.repeat(column_N, longest)
        elif count != longest:
            raise MixwellError(f"column {name!r} has {count} runs where others have {longest}.")
        _check(name, column_N, positive)
        found[name] = column_N
    return found


def _column(table: Any, name: str) -> np.ndarray:
    known = columns_of(table)
    if name not in known:
        raise MixwellError(f"the runs have no column {shown(name)}.{suggest(name, known)} They have: "
                           f"{', '.join(known)}.")
    try:
        column_N = np.asarray(table[name], dtype=np.float64)
    except (TypeError, ValueError):
        raise MixwellError(f"column {name!r} holds something that is no number; expected a number for each run.") \
            from None
    return np.atleast_1d(column_N)


def log_uniform(generator: np.random.Generator, low: float, high: float, count: int) -> np.ndarray:
    """Numbers spread evenly over the logarithms between two: [count]."""
    logs = generator.uniform(np.log(low), np.log(high), count)
    return np.exp(logs)


def _check(name: str, column_N: np.ndarray, positive: bool) -> None:
    good_N = np.isfinite(column_N)
    if positive:
        good_N &= column_N > 0
    bad = np.flatnonzero(~good_N)
    if len(bad):
        expected = "a finite number above 0" if positive else "a finite number"
        raise MixwellError(f"column {name!r}, run {bad[0] + 1}: {column_N[bad[0]]:g} came, expected {expected}; "
                           f"{len(bad)} of {len(column_N)} runs are like this.")
