"""Estimators whose columns are independent within a component: supports, draws, numbers of parameters.

N rows, B rows of a part, D columns, K components.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from mixwell.density.mixtures._parts import MixtureConfig
from mixwell.density.mixtures._plain import PlainMixture
from mixwell.density.mixtures._scores import as_array
from mixwell.density.mixtures.em.loop import Family
from mixwell.density.mixtures.em.rows import MappedRows, Rows, column_name

LARGEST_DRAW = 9.2e18  # rate: beyond it counts do not fit into 64 bits


@dataclass(frozen=True, kw_only=True)
class PositiveConfig(MixtureConfig):
    """Options of mixtures over numbers above zero."""

    zeros: str = "error"  # or "missing": what a zero is taken for
    min_spread: float = 1e-3  # least coefficient of variation of a component, so that none collapses onto one value


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


class PositiveMixture(ColumnMixture):
    """A mixture over numbers above zero."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **ColumnMixture._parameter_constraints,
        "zeros": [StrOptions({"error", "missing"})],
        "min_spread": [Interval(Real, 0.0, None, closed="neither")],
    }

    def _family(self, columns: int, device: torch.device) -> Family:
        family = super()._family(columns, device)
        family.min_spread = self.min_spread  # type: ignore[attr-defined]
        return family

    def _open(self, X: Any, *, reset: bool) -> Rows:
        rows = super()._open(X, reset=reset)
        return MappedRows(rows, self._seen) if self.zeros == "missing" else rows

    def _seen(self, x_BD: Tensor) -> Tensor:
        if self.zeros == "error":
            return x_BD
        return x_BD.masked_fill(x_BD == 0, torch.nan)

    def _check_input(self, rows: Rows) -> None:
        refuse_where(rows, lambda x_BD: x_BD < 0, f"Negative values in data passed to {type(self).__name__}",
                     "expected numbers above 0")
        refuse_where(rows, lambda x_BD: x_BD == 0, f"Zeros in data passed to {type(self).__name__}",
                     "expected numbers above 0; pass zeros='missing' to leave them out")

    def _start_points(self, x_ND: np.ndarray) -> np.ndarray:
        return np.log(x_ND)  # about the same variance at every scale

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags


class CountMixture(ColumnMixture):
    """A mixture over numbers from zero on, most of them counts; sparse tables are walked by their entries."""

    _sparse = True
    _support: ClassVar[str] = "counts"  # in an error's words

    def _check_input(self, rows: Rows) -> None:
        refuse_where(rows, lambda x_BD: x_BD < 0, f"Negative values in data passed to {type(self).__name__}",
                     f"expected {self._support}")

    def _start_points(self, x_ND: np.ndarray) -> np.ndarray:
        return np.sqrt(x_ND)  # about the same variance for every rate

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags


def refuse_where(rows: Rows, wrong: Callable[[Tensor], Tensor], what: str, expected: str) -> None:
    """`ValueError` that names the first value for which `wrong` holds, if there is one."""
    place = rows.first_where(wrong)
    if place is not None:
        row, column = place
        name = column_name(rows.names, column)
        raise ValueError(f"{what}: row {row}, column {name}; {expected}.")


def draw_counts(rng: np.random.RandomState, rates_ND: np.ndarray) -> np.ndarray:
    """Poisson counts, or a `ValueError` where a rate is too large for them."""
    largest = rates_ND.max(initial=0)
    if largest > LARGEST_DRAW:
        raise ValueError(f"a rate of {largest:g} is too large to draw counts from; expected at most "
                         f"{LARGEST_DRAW:g}. Fit to counts in larger units.")
    return rng.poisson(rates_ND)
