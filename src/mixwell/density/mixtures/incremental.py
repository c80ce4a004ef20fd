"""Incremental Gaussian mixture: one pass over a stream, on precision matrices, components added where data are new.

**Equation:** a row x updates every component: sp_j <- sp_j + p(j | x), w = p(j | x) / sp_j, e = x - mu, mu <- mu + w e,
C <- (1 - w) C + c e e', which for the precision L = C^-1 and g = L e, d^2 = e' g, s = 1 + c d^2 / (1 - w) is
    L <- (L - c / ((1 - w) s) g g') / (1 - w),    log|C| <- D log(1 - w) + log|C| + log s.
If no component has d^2 below the chi-square quantile of 1 - beta with D degrees, x starts a component with covariance
diag(delta spread)^2 instead. A component older than `age_min` rows with sp below `mass_min` is dropped. c = w (1 - w)
(`residual="old"`) is the exact weighted covariance; c = w (1 - 3 w + w^2) (`"new"`) is w e* e*' - dmu dmu' with e* the
residual from the new mean, as in the papers.

**Shapes:** X (N, D); `means_` (K, D), `precisions_` (K, D, D), `log_dets_` (K,) of the covariances, `masses_` (K,) sp,
`ages_` (K,), `weights_` (K,).

**Reference:** Pinto and Engel (2015), A Fast Incremental Gaussian Mixture Model, arXiv:1506.04422; Pinto and Engel
(2017), Scalable and Incremental Learning of Gaussian Mixture Models, arXiv:1701.03940.

**Differs:** one rank-one step for both of the first paper's. `residual="old"` is the default because `"new"` leaves the
positive definite matrices when a row far from a young component (w > 0.38) takes part; that is an error here. The
reinforcement-learning agent of the second paper is not here; `conditional_mean` is what it is built on. Equations
from memory and from a public reimplementation.

**Fails when:** the order of rows carries the classes: early components then swallow what comes later. A new
component's spread far below the data's costs digits in every precision.

**Cost:** O(K D^2) a row; `form="covariance"`, kept for comparison, O(K D^3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import chi2
from sklearn.base import DensityMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.density._gaussian import Array, log_normal, outer
from mixwell.density._options import Configured


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the incremental mixture."""

    delta: float = 0.5  # spread of a new component, as a share of the data's standard deviations
    beta: float = 0.05  # novelty: a row is new where every component finds it less likely than that; 0: never
    spread: Any = None  # (D,) standard deviations; None: those of the first rows that come
    residual: Literal["old", "new"] = "old"  # which mean the covariance's residual is from
    form: Literal["precision", "covariance"] = "precision"  # what is stored and updated
    age_min: float = float("inf")  # rows after which a component may be dropped
    mass_min: float = 3.0  # accumulated posterior below which it then is

    def __post_init__(self) -> None:
        if self.delta <= 0 or not 0 <= self.beta < 1:
            raise ValueError(f"delta is {self.delta} and beta {self.beta}; expected above 0, and from 0 to below 1")
        if self.residual not in ("old", "new"):
            raise ValueError(f"residual is {self.residual!r}; expected 'old' or 'new'")
        if self.form not in ("precision", "covariance"):
            raise ValueError(f"form is {self.form!r}; expected 'precision' or 'covariance'")
        if self.age_min < 0 or self.mass_min < 0:
            raise ValueError(f"age_min is {self.age_min} and mass_min {self.mass_min}; expected 0 or more")


def gain(rate_K: Array, residual: str) -> Array:
    """c: the coefficient of e e' in the covariance."""
    return rate_K * (1 - rate_K) if residual == "old" else rate_K * (1 - 3 * rate_K + rate_K**2)


def update_precisions(precisions_KDD: Array, log_dets_K: Array, e_KD: Array, rate_K: Array,
                      c_K: Array) -> tuple[Array, Array]:
    """Precisions and log determinants of (1 - w) C + c e e', by the Sherman-Morrison and determinant lemmas."""
    g_KD = np.einsum("kij,kj->ki", precisions_KDD, e_KD)
    s_K = 1 + c_K * (e_KD * g_KD).sum(1) / (1 - rate_K)
    _check_positive(s_K)
    scale_K = c_K / ((1 - rate_K) * s_K)
    new = precisions_KDD - scale_K[:, None, None] * outer(g_KD, g_KD)
    return new / (1 - rate_K)[:, None, None], e_KD.shape[1] * np.log1p(-rate_K) + log_dets_K + np.log(s_K)


def update_covariances(covariances_KDD: Array, e_KD: Array, rate_K: Array, c_K: Array) -> tuple[Array, Array, Array]:
    """The same in the direct form: covariances, their inverses, and log determinants."""
    new = (1 - rate_K)[:, None, None] * covariances_KDD + c_K[:, None, None] * outer(e_KD, e_KD)
    sign_K, log_dets_K = np.linalg.slogdet(new)
    _check_positive(sign_K)
    return new, np.linalg.inv(new), log_dets_K


def _check_positive(value_K: Array) -> None:
    if not (value_K > 0).all():
        raise MixwellError(f"component {int(np.argmin(value_K))} would lose its positive definite covariance: a row is "
                           "too far from it for residual='new'; use residual='old', or a larger delta")


@method(
    title="Incremental Gaussian mixture",
    paper=("A Fast Incremental Gaussian Mixture Model", "Scalable and Incremental Learning of Gaussian Mixture Models"),
    year=2015,
    tags={"estimator", "density", "responsibilities", "relabel", "sklearn"},
)
class IncrementalGaussianMixture(DensityMixin, Configured, config=Config):
    """Gaussian mixture of a stream with scikit-learn's conventions; see the module's card and `Config`."""

    def fit(self, X: Any, y: Any = None) -> IncrementalGaussianMixture:
        """Forget everything, then read X (N, D) once, in its order. `y` is ignored."""
        for name in ("means_", "n_features_in_"):
            if hasattr(self, name):
                delattr(self, name)
        return self.partial_fit(X)

    def partial_fit(self, X: Any, y: Any = None) -> IncrementalGaussianMixture:
        """Read rows X (N, D) once, in their order. `y` is ignored."""
        config = self._config()
        first = not hasattr(self, "means_")
        x_ND = validate_data(self, X, dtype=np.float64, reset=first)
        if first:
            self._begin(x_ND, config)
        for x_D in x_ND:
            self._learn(x_D, config)
        return self

    def _begin(self, x_ND: Array, config: Config) -> None:
        spread_D = np.asarray(x_ND.std(0) if config.spread is None else config.spread, dtype=np.float64)
        if spread_D.shape != x_ND.shape[1:]:
            raise ValueError(f"spread has shape {spread_D.shape}; expected ({x_ND.shape[1]},)")
        D = x_ND.shape[1]
        self._variance_D = (config.delta * np.where(spread_D > 0, spread_D, 1.0)) ** 2
        self._limit = float(chi2.ppf(1 - config.beta, D)) if config.beta > 0 else np.inf
        self.means_, self.precisions_ = np.empty((0, D)), np.empty((0, D, D))
        self._covariances = np.empty((0, D, D))
        self.log_dets_, self.masses_, self.ages_ = np.empty(0), np.empty(0), np.empty(0)

    def _learn(self, x_D: Array, config: Config) -> None:
        distance_K = self._distances(x_D[None])[0]
        if (distance_K < self._limit).any():
            log_K = np.log(self.masses_) - 0.5 * (self.log_dets_ + distance_K)
            self._absorb(x_D, softmax(log_K), config)
        else:
            self._add(x_D)
        keep_K = (self.ages_ <= config.age_min) | (self.masses_ >= config.mass_min)
        if not keep_K.all() and keep_K.any():
            for name in ("means_", "precisions_", "_covariances", "log_dets_", "masses_", "ages_"):
                setattr(self, name, getattr(self, name)[keep_K])
        self.weights_ = self.masses_ / self.masses_.sum()

    def _absorb(self, x_D: Array, posterior_K: Array, config: Config) -> None:
        masses_K = self.masses_ + posterior_K
        rate_K, e_KD = posterior_K / masses_K, x_D - self.means_
        c_K = gain(rate_K, config.residual)
        if config.form == "precision":
            self.precisions_, self.log_dets_ = update_precisions(self.precisions_, self.log_dets_, e_KD, rate_K, c_K)
        else:
            self._covariances, self.precisions_, self.log_dets_ = update_covariances(self._covariances, e_KD, rate_K,
                                                                                     c_K)
        self.means_ = self.means_ + rate_K[:, None] * e_KD
        self.masses_, self.ages_ = masses_K, self.ages_ + 1

    def _add(self, x_D: Array) -> None:
        self.means_ = np.vstack([self.means_, x_D])
        self.precisions_ = np.concatenate([self.precisions_, np.diag(1 / self._variance_D)[None]])
        self._covariances = np.concatenate([self._covariances, np.diag(self._variance_D)[None]])
        self.log_dets_ = np.append(self.log_dets_, np.log(self._variance_D).sum())
        self.masses_, self.ages_ = np.append(self.masses_, 1.0), np.append(self.ages_, 1.0)

    def _distances(self, x_ND: Array) -> Array:
        e_NKD = x_ND[:, None] - self.means_
        return np.einsum("nki,kij,nkj->nk", e_NKD, self.precisions_, e_NKD, optimize=True)

    def _log_joint(self, X: Any) -> Array:
        check_is_fitted(self, "means_")
        x_ND = validate_data(self, X, dtype=np.float64, reset=False)
        return np.log(self.weights_) + log_normal(self._distances(x_ND), 0.5 * self.log_dets_, x_ND.shape[1])

    def score_samples(self, X: Any) -> Array:
        """Log density of every row (N,), in nats."""
        return logsumexp(self._log_joint(X), axis=1)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of the rows, in nats."""
        return float(self.score_samples(X).mean())

    def predict_proba(self, X: Any) -> Array:
        """Responsibilities (N, K)."""
        return softmax(self._log_joint(X), axis=1)

    def predict(self, X: Any) -> Array:
        """The most probable component of every row (N,)."""
        return self._log_joint(X).argmax(1)

    def conditional_mean(self, known: Any, columns: Any) -> Array:
        """Mean of the other columns (N, D - P), in their order, given values `known` (N, P) of `columns` (P,)."""
        check_is_fitted(self, "means_")
        seen = np.asarray(columns, dtype=int)
        lost = np.setdiff1d(np.arange(self.means_.shape[1]), seen)
        x_NP = check_array(known, dtype=np.float64)
        if x_NP.shape[1] != len(seen) or len(np.unique(seen)) != len(seen) or not len(lost):
            raise ValueError(f"known has {x_NP.shape[1]} columns for {len(seen)} named; expected as many, all "
                             f"different, and fewer than {self.means_.shape[1]}")
        rest = self.precisions_[:, lost[:, None], lost]
        cross = self.precisions_[:, lost[:, None], seen]
        slope_KLP = -np.linalg.solve(rest, cross)
        marginal = self.precisions_[:, seen[:, None], seen] + cross.transpose(0, 2, 1) @ slope_KLP
        e_NKP = x_NP[:, None] - self.means_[:, seen]
        log_NK = (np.log(self.weights_) + 0.5 * np.linalg.slogdet(marginal)[1]
                  - 0.5 * np.einsum("nki,kij,nkj->nk", e_NKP, marginal, e_NKP))
        mean_NKL = self.means_[:, lost] + np.einsum("klp,nkp->nkl", slope_KLP, e_NKP)
        return np.einsum("nk,nkl->nl", softmax(log_NK, axis=1), mean_NKL)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups of points in the plane."""
    label_N = torch.randint(2, (120,), generator=generator)
    x_ND = torch.randn(120, 2, generator=generator, dtype=torch.float64) + 8 * label_N[:, None]
    return {"estimator": IncrementalGaussianMixture(), "X": x_ND.numpy()}
