"""Gaussian mixture regression: a mixture of rows of inputs and targets together, read one way round.

**Equation:** p(x, y) = sum_k w_k N((x, y); mu_k, Sigma_k), fitted by EM. Then p(y | x) = sum_k h_k(x) N(y; m_k(x),
S_k), h_k proportional to w_k N(x; mu_xk, Sigma_xxk), m_k(x) = mu_yk + Sigma_yxk Sigma_xxk^-1 (x - mu_xk), S_k =
Sigma_yyk - Sigma_yxk Sigma_xxk^-1 Sigma_xyk. The prediction is its mean, sum_k h_k m_k(x). The same with any columns in
the place of y fills in what a row lacks.

**Shapes:** X (N, D), y (N,) or (N, Q); `mixture_` over D + Q columns, y last. N rows, K components, O observed and U
unseen columns.

**Reference:** Ghahramani, Jordan (1994), Supervised Learning from Incomplete Data via an EM Approach; Sung (2004),
Gaussian Mixture Regression and Classification.

**Differs:** none.

**Fails when:** y jumps, or bends sharply where there are few rows: K straight pieces follow it.

**Cost:** as `GaussianMixture` over D + Q columns; a prediction O(N K D^2) and O(K D^3) a pattern of missing values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from mixwell.core.method import method
from mixwell.density._gaussian import Array, gain, log_positive, log_prob, symmetric
from mixwell.density._options import Configured
from mixwell.density.mixtures.gaussian import GaussianMixture


@dataclass(frozen=True)
class Config:
    """Options of the regression."""

    mixture: Any = None  # a `GaussianMixture` of any covariance type, unfitted; None: one of full covariances
    n_components: int = 3  # K of the mixture where none was given
    random_state: Any = None  # of draws, and of that mixture's starts


@dataclass(frozen=True)
class Conditional:
    """The mixture of what some rows lack, given what they have."""

    share_NK: Array
    means_NKU: Array
    covariances_KUU: Array

    @property
    def mean(self) -> Array:
        """(N, U)."""
        return np.einsum("nk,nku->nu", self.share_NK, self.means_NKU)

    def sample(self, rng: np.random.RandomState) -> Array:
        """One draw for each row (N, U)."""
        N, _, U = self.means_NKU.shape
        bounds_NK = np.cumsum(self.share_NK, axis=1)
        passed_NK = rng.uniform(size=(N, 1)) > bounds_NK[:, :-1]
        chosen_N = passed_NK.sum(1)
        root_KUU = np.linalg.cholesky(self.covariances_KUU)
        noise_NU = rng.standard_normal((N, U))
        own_NU = np.einsum("nuv,nv->nu", root_KUU[chosen_N], noise_NU)
        return self.means_NKU[np.arange(N), chosen_N] + own_NU


def given(mixture: Any, seen_NO: Array, observed: Array) -> Conditional:
    """What a fitted Gaussian mixture says of the columns that `observed` (D,) leaves out, for rows of the others."""
    density = mixture.as_density()
    weights_K, means_KD, covariances_KDD = (
        value.numpy() for value in (density.weights_K, density.means_KD, density.covariances_KDD))
    o, u = np.flatnonzero(observed), np.flatnonzero(~observed)
    rows_KUD = covariances_KDD[:, u]
    seen_KOO = covariances_KDD[:, o][:, :, o]
    cross_KUO = rows_KUD[:, :, o]
    gap_KNO = seen_NO - means_KD[:, None, o]
    log_NK = np.tile(log_positive(weights_K), (len(seen_NO), 1))
    slope_KUO = cross_KUO
    if len(o):
        pairs = zip(gap_KNO, seen_KOO)
        log_KN = [log_prob(gap_NO, own_OO) for gap_NO, own_OO in pairs]
        log_NK += np.stack(log_KN, 1)
        slope_KUO = gain(cross_KUO, seen_KOO)
    share_NK = softmax(log_NK, axis=1)
    moved_NKU = np.einsum("kuo,kno->nku", slope_KUO, gap_KNO)
    known_KUU = slope_KUO @ cross_KUO.swapaxes(1, 2)
    rest_KUU = symmetric(rows_KUD[:, :, u] - known_KUU)
    return Conditional(share_NK, means_KD[:, u] + moved_NKU, rest_KUU)


@method(title="Gaussian mixture regression", year=1994, tags={"estimator", "sklearn"})
class GaussianMixtureRegressor(RegressorMixin, Configured, BaseEstimator, config=Config):
    """Regression by the mean of targets given inputs under a Gaussian mixture of both; NaN in X is a missing value."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> GaussianMixtureRegressor:
        """Fit the mixture to inputs X (N, D) and targets y (N,) or (N, Q); returns self. Raises as the mixture."""
        x_ND, y_N = validate_data(self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", multi_output=True,
                                  y_numeric=True, ensure_min_samples=2)
        targets_NQ = np.asarray(y_N, float).reshape(len(x_ND), -1)
        mixture = self.mixture
        if mixture is None:
            mixture = GaussianMixture(self.n_components, reg_covar="scale", random_state=self.random_state)
        both_ND = np.hstack([x_ND, targets_NQ])
        self.mixture_ = clone(mixture).fit(both_ND, sample_weight=sample_weight)
        self._flat = y_N.ndim == 1
        return self

    def predict(self, X: Any) -> Array:
        """Conditional means of y (N,) or (N, Q); an error before `fit`."""
        return self._answer(X, lambda found: found.mean)

    def sample_targets(self, X: Any, random_state: Any = None) -> Array:
        """A draw of y from its conditional distribution for every row, (N,) or (N, Q); an error before `fit`."""
        rng = check_random_state(self.random_state if random_state is None else random_state)
        return self._answer(X, lambda found: found.sample(rng))

    def _answer(self, X: Any, what: Any) -> Array:
        check_is_fitted(self)
        x_ND = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        N, D = x_ND.shape
        Q = self.mixture_.n_features_in_ - D
        unknown_NQ = np.full((N, Q), np.nan)
        filled_ND = filled(self.mixture_, np.hstack([x_ND, unknown_NQ]), what)
        found_NQ = filled_ND[:, D:]
        return found_NQ[:, 0] if self._flat else found_NQ

    def impute(self, rows: Any) -> Array:
        """Rows (N, D + Q) of inputs and targets with conditional means in the place of what is missing (NaN).

        Raises a `ValueError` where they have another number of columns; an error before `fit`.
        """
        check_is_fitted(self)
        rows_ND = np.array(rows, float)
        expected = self.mixture_.n_features_in_
        if rows_ND.ndim != 2 or rows_ND.shape[1] != expected:
            raise ValueError(f"rows have shape {rows_ND.shape}; expected (N, {expected}): the inputs, then the "
                             "targets.")
        return filled(self.mixture_, rows_ND, lambda found: found.mean)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.target_tags.multi_output = True
        return tags


def filled(mixture: Any, rows_ND: Array, what: Any) -> Array:
    """Rows with `what` the conditional mixture says in the place of what is missing, a pattern at a time."""
    rows_ND = rows_ND.copy()
    there_ND = ~np.isnan(rows_ND)
    patterns, pattern_N = np.unique(there_ND, axis=0, return_inverse=True)
    for i, observed in enumerate(patterns):
        if observed.all():
            continue
        index = np.flatnonzero(pattern_N.ravel() == i)
        own_ND = rows_ND[index]
        own_ND[:, ~observed] = what(given(mixture, own_ND[:, observed], observed))
        rows_ND[index] = own_ND
    return rows_ND


def example(generator: torch.Generator) -> dict[str, Any]:
    """A bent curve with noise."""
    x_N1 = 6 * torch.rand(150, 1, generator=generator, dtype=torch.float64)
    noise_N = torch.randn(150, generator=generator, dtype=torch.float64)
    y_N = torch.sin(x_N1[:, 0]) + 0.1 * noise_N
    mixture = GaussianMixture(4, random_state=0)
    return {"estimator": GaussianMixtureRegressor(mixture), "X": x_N1.numpy(), "y": y_N.numpy()}
