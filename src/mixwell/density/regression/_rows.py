"""Rows of a regression that may come in groups, weigh, and lack values, in float64.

N rows, P columns of a design (the first is the intercept), G groups, Q columns of their covariates' design, K
components.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.validation import check_array, column_or_1d

from mixwell.density._gaussian import Array
from mixwell.density.regression._parts import with_intercept


class Data(NamedTuple):
    """Rows to fit or to score, and the groups that they come in; NaN where a value is missing."""

    h_NP: Array
    y_N: Array
    group_N: Array  # numbers of the groups
    z_GQ: Array
    weight_G: Array

    @property
    def seen_N(self) -> Array:
        """Which rows say something of their component: those that lack nothing."""
        lost_N = np.isnan(self.h_NP).any(1)
        return ~(lost_N | np.isnan(self.y_N))

    @property
    def weight(self) -> float:
        """How many rows these are, by their weights."""
        weight_N = self.weight_G[self.group_N]
        return float(weight_N.sum())

    def summed(self, value_NK: Array) -> Array:
        """Sums over the rows of every group (G, K)."""
        total_GK = np.zeros((len(self.z_GQ), value_NK.shape[1]))
        np.add.at(total_GK, self.group_N, value_NK)
        return total_GK

    def whole(self) -> Data:
        """The rows that can be fitted to; a `ValueError` where there is none."""
        lost_G = np.isnan(self.z_GQ).any(1)
        counts_G = ~lost_G & (self.weight_G > 0)
        fit_N = self.seen_N & counts_G[self.group_N]
        if not fit_N.any():
            raise ValueError("no row has all of its values and a weight above 0; nothing is left to fit.")
        h_NP, y_N = self.h_NP[fit_N], self.y_N[fit_N]
        own_N = self.group_N[fit_N]
        groups, group_N = np.unique(own_N, return_inverse=True)
        z_GQ = self.z_GQ[groups]
        weight_G = self.weight_G[groups]
        return Data(h_NP, y_N, group_N, z_GQ, weight_G)


def gathered(x_ND: Array, y_N: Array, groups: Any, Z: Any, sample_weight: Any, allow_nan: bool) -> Data:
    """Rows with all that may come beside them; a `ValueError` where something does not fit them."""
    rows = len(x_ND)
    z_NQ = _covariates(Z, rows, allow_nan)
    weight_N = _weights(sample_weight, rows)
    first_G, group_N = _numbered(groups, rows)
    z_GQ = z_NQ[first_G]
    weight_G = weight_N[first_G]
    _refuse_uneven("Z", z_NQ, z_GQ[group_N])
    _refuse_uneven("sample_weight", weight_N, weight_G[group_N])
    h_NP = with_intercept(x_ND)
    design_GQ = with_intercept(z_GQ)
    return Data(h_NP, y_N, group_N, design_GQ, weight_G)


def targets(y: Any, rows: int, allow_nan: bool) -> Array:
    """y (N,) in float64."""
    finite: Any = "allow-nan" if allow_nan else True
    y_N = check_array(y, dtype=np.float64, ensure_2d=False, ensure_all_finite=finite, input_name="y")
    y_N = column_or_1d(y_N, warn=True)
    _refuse_other_length("y", len(y_N), rows)
    return y_N


def _covariates(Z: Any, rows: int, allow_nan: bool) -> Array:
    """Z (N, Q), no columns where there is none."""
    if Z is None:
        return np.empty((rows, 0))
    finite: Any = "allow-nan" if allow_nan else True
    z = check_array(Z, dtype=np.float64, ensure_2d=False, ensure_all_finite=finite, input_name="Z")
    _refuse_other_length("Z", len(z), rows)
    return z.reshape(rows, -1)


def _weights(sample_weight: Any, rows: int) -> Array:
    if sample_weight is None:
        return np.ones(rows)
    given = np.asarray(sample_weight, float)
    weight_N = given
    if given.ndim == 0:
        weight_N = np.full(rows, float(given))
    whole = weight_N.shape == (rows,)
    finite = np.isfinite(weight_N).all()
    positive = (weight_N >= 0).all() and weight_N.any()
    if not (whole and finite and positive):
        raise ValueError(f"sample_weight of shape {given.shape} for {rows} rows; expected a number of 0 or more a row, "
                         "not all zero.")
    return weight_N


def _numbered(groups: Any, rows: int) -> tuple[Array, Array]:
    """First row of every group (G,), and every row's group (N,); each row its own where there are none."""
    if groups is None:
        return np.arange(rows), np.arange(rows)
    labels = np.asarray(groups)
    if labels.ndim != 1:
        raise ValueError(f"groups has shape {labels.shape}; expected a label for each of {rows} rows.")
    _refuse_other_length("groups", len(labels), rows)
    _, first_G, group_N = np.unique(labels, return_index=True, return_inverse=True)
    return first_G, group_N


def _refuse_other_length(name: str, given: int, rows: int) -> None:
    if given != rows:
        raise ValueError(f"{name} has {given} entries for {rows} rows of X; expected one a row.")


def _refuse_uneven(name: str, value: Array, first: Array) -> None:
    """Refuse what differs within a group."""
    missing = np.isnan(value) & np.isnan(first)
    differs = (value != first) & ~missing
    places = np.argwhere(differs)
    if len(places):
        row = int(places[0, 0])
        raise ValueError(f"{name} differs within a group (row {row}); a group has one component; give its rows the "
                         "same.")


class Units(NamedTuple):
    """Places and scales of columns, for regressions that are well conditioned."""

    shift_D: Array
    scale_D: Array

    @classmethod
    def of(cls, h_NP: Array, weight_N: Array) -> Units:
        """Of a design's columns but the first."""
        x_ND = h_NP[:, 1:]
        mean_D = np.average(x_ND, axis=0, weights=weight_N)
        square_ND = (x_ND - mean_D) ** 2
        variance_D = np.average(square_ND, axis=0, weights=weight_N)
        spread_D = np.sqrt(variance_D)
        largest_D = np.abs(x_ND).max(0, initial=0)
        varies_D = spread_D > 1e-12 * largest_D
        scale_D = np.where(varies_D, spread_D, 1.0)
        return cls(mean_D, scale_D)

    def design(self, h_NP: Array) -> Array:
        """The same columns in these units."""
        gap_ND = h_NP[:, 1:] - self.shift_D
        return with_intercept(gap_ND / self.scale_D)

    def back(self, coef_KP: Array) -> Array:
        """Coefficients for the columns' own units, from those for these."""
        slopes_KD = coef_KP[:, 1:] / self.scale_D
        moved_K = slopes_KD @ self.shift_D
        intercept_K = coef_KP[:, 0] - moved_K
        return np.column_stack([intercept_K, slopes_KD])
