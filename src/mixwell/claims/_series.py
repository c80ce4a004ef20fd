"""Numbers of several draws or data sets of one seed, turned and averaged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def columns(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Rows of equal length turned: a list for each column."""
    return [list(column) for column in zip(*rows)]


def by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows with the same names turned: a list for each name."""
    found: dict[str, list[Any]] = {}
    for name in rows[0]:
        found[name] = [row[name] for row in rows]
    return found


def mean(values: Iterable[float]) -> float:
    """Their mean."""
    return float(np.mean(list(values)))


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean under each name of rows with the same names."""
    turned = by_name(rows)
    return {name: mean(values) for name, values in turned.items()}
