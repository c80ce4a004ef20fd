"""Estimators whose columns are independent within a component: supports, draws, numbers of parameters.

N rows, B rows of a part, D columns, K components.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch

from mixwell.density.mixtures._plain import PlainMixture
from mixwell.density.mixtures._scores import as_array
from mixwell.density.mixtures.em.loop import Family
from mixwell.density.mixtures.em.rows import Rows, column_name

LARGEST_DRAW = 9.2e18  # rate: beyond it counts do not fit into 64 bits


class ColumnMixture(PlainMixture):
    """A mixture whose attributes hold one number (K, D) a component and column."""

    _family_class: ClassVar[Any]
    _allow_nan = True

    def _family(self, columns: int, device: torch.device) -> Family:
        return self._family_class(columns, self._fixed())

    def _n_parameters(self) -> int:
        K, D = len(self.weights_), self.n_features_in_
        own = dict.fromkeys(self._attributes, K * D)
        return self._count_free({"weights": K - 1, **own})

    def _draw(self, rng: np.random.RandomState, counts_K: np.ndarray) -> np.ndarray:
        repeated = {}
        for name, attribute in self._attributes.items():
            value_KD = as_array(getattr(self, attribute)).astype(float)
            repeated[name] = np.repeat(value_KD, counts_K, axis=0)
        return self._variates(rng, **repeated).astype(float)

    @abstractmethod
    def _variates(self, rng: np.random.RandomState, **params_ND: np.ndarray) -> np.ndarray:
        """One draw (N, D) for each of the parameters (N, D)."""


class CountMixture(ColumnMixture):
    """A mixture over counts."""

    def _check_input(self, rows: Rows) -> None:
        for start, chunk in rows.chunks():
            negative_BD = chunk < 0
            if bool(negative_BD.any()):
                row, column = negative_BD.nonzero()[0].tolist()
                name = column_name(rows.names, column)
                raise ValueError(f"Negative values in data passed to {type(self).__name__}: row {start + row}, column "
                                 f"{name}; expected counts.")

    def _start_points(self, x_ND: np.ndarray) -> np.ndarray:
        return np.sqrt(x_ND)  # about the same variance for every rate

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags


def draw_counts(rng: np.random.RandomState, rates_ND: np.ndarray) -> np.ndarray:
    """Poisson counts, or a `ValueError` where a rate is too large for them."""
    largest = rates_ND.max(initial=0)
    if largest > LARGEST_DRAW:
        raise ValueError(f"a rate of {largest:g} is too large to draw counts from; expected at most "
                         f"{LARGEST_DRAW:g}. Fit to counts in larger units.")
    return rng.poisson(rates_ND)
