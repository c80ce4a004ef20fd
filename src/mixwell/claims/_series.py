"""Measurements of a claim as series: one value a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from mixwell.claims.bench import Bench

T = TypeVar("T")


def by_seed(bench: Bench, measure: Callable[..., T], *arguments: Any) -> list[T]:
    """`measure(seed, *arguments)` for each seed of the bench."""
    return [measure(seed, *arguments) for seed in bench.seeds]


def columns(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Rows of equal length turned: a list for each column."""
    return [list(column) for column in zip(*rows)]


def series(bench: Bench, measure: Callable[..., Sequence[Any]], *arguments: Any) -> list[list[Any]]:
    """A list over the seeds for each of the values that `measure(seed, *arguments)` returns."""
    rows = by_seed(bench, measure, *arguments)
    return columns(rows)


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


def best(paired: Iterable[Sequence[float]], choose: Callable[[Iterable[float]], float] = min) -> list[float]:
    """The best of several series at each seed."""
    return [choose(values) for values in zip(*paired)]


def said(values: Iterable[float], digits: int = 2) -> str:
    """The values as a note gives them: `[0.12, 0.3]`."""
    return str([round(value, digits) for value in values])
