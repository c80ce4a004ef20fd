"""The rows of a table as a fit sees them: encoded, with their columns and weights.

N rows, D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixwell.density.mixtures.product import ProductMixture
from mixwell.tables.columns import Column, log_units, used
from mixwell.tables.kinds import NUMERIC


@dataclass(frozen=True, eq=False)
class Rows:
    """Encoded rows (N, D), the columns that they come from, and their weights (N,)."""

    x_ND: np.ndarray
    columns: Sequence[Column]
    weights_N: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x_ND)

    @property
    def each_N(self) -> np.ndarray:
        """The weight of every row."""
        if self.weights_N is None:
            return np.ones(len(self))
        return self.weights_N

    @property
    def total(self) -> float:
        """The number of rows that the weights stand for."""
        return float(self.each_N.sum())

    @property
    def values(self) -> float:
        """The number of values that the weights stand for."""
        there_N = np.sum(~np.isnan(self.x_ND), 1)
        return float(there_N @ self.each_N)

    @property
    def numeric(self) -> int:
        """The number of numeric columns."""
        own = used(self.columns)
        return sum(column.kind == NUMERIC for column in own)

    def part(self, places: np.ndarray) -> Rows:
        """Some of the rows."""
        weights_N = None if self.weights_N is None else self.weights_N[places]
        return Rows(self.x_ND[places], self.columns, weights_N)

    def some(self, count: int | None, seed: int) -> Rows:
        """Rows drawn at random, in their order; all where there are no more than `count`."""
        if count is None or count >= len(self):
            return self
        drawn = np.random.default_rng(seed).choice(len(self), count, replace=False)
        return self.part(np.sort(drawn))

    def log_density(self, model: ProductMixture) -> np.ndarray:
        """Log density of every row (N,), in nats, in the data's own units."""
        encoded_N: np.ndarray = model.score_samples(self.x_ND)
        units_N = log_units(self.columns, self.x_ND)
        return encoded_N - units_N
