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
    """Options of the incremental mixture; `ValueError` for one out of range."""

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
        _check_one_of("residual", self.residual, ("old", "new"))
        _check_one_of("form", self.form, ("precision", "covariance"))
        if self.age_min < 0 or self.mass_min < 0:
            raise ValueError(f"age_min is {self.age_min} and mass_min {self.mass_min}; expected 0 or more")


def _check_one_of(name: str, value: str, allowed: tuple[str, str]) -> None:
    """Refuse an option that is neither of two."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected {allowed[0]!r} or {allowed[1]!r}")


def gain(rate_K: Array, residual: str) -> Array:
    """c: the coefficient of e e' in the covariance."""
    if residual == "old":
        return rate_K * (1 - rate_K)
    kept_K = 1 - 3 * rate_K + rate_K**2
    return rate_K * kept_K


def update_precisions(precisions_KDD: Array, log_dets_K: Array, e_KD: Array, rate_K: Array,
                      c_K: Array) -> tuple[Array, Array]:
    """Precisions and log determinants of (1 - w) C + c e e', by the Sherman-Morrison and determinant lemmas.

    Raises a `MixwellError` where a matrix would no longer be positive definite.
    """
    D = e_KD.shape[1]
    kept_K = 1 - rate_K
    g_KD = np.einsum("kij,kj->ki", precisions_KDD, e_KD)
    distance_K = (e_KD * g_KD).sum(1)
    s_K = 1 + c_K * distance_K / kept_K
    _check_positive(s_K)
    scale_K = c_K / (kept_K * s_K)
    step_KDD = scale_K[:, None, None] * outer(g_KD, g_KD)
    new_KDD = precisions_KDD - step_KDD
    log_dets_K = D * np.log1p(-rate_K) + log_dets_K + np.log(s_K)
    return new_KDD / kept_K[:, None, None], log_dets_K


def update_covariances(covariances_KDD: Array, e_KD: Array, rate_K: Array, c_K: Array) -> tuple[Array, Array, Array]:
    """The same in the direct form: covariances, their inverses, and log determinants; raises as that."""
    kept_K = 1 - rate_K
    kept_KDD = kept_K[:, None, None] * covariances_KDD
    added_KDD = c_K[:, None, None] * outer(e_KD, e_KD)
    new_KDD = kept_KDD + added_KDD
    sign_K, log_dets_K = np.linalg.slogdet(new_KDD)
    _check_positive(sign_K)
    return new_KDD, np.linalg.inv(new_KDD), log_dets_K


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
        """Forget everything, then read X (N, D) once, in its order. `y` is ignored; raises as `partial_fit`."""
        for name in ("means_", "n_features_in_"):
            if hasattr(self, name):
                delattr(self, name)
        return self.partial_fit(X)

    def partial_fit(self, X: Any, y: Any = None) -> IncrementalGaussianMixture:
        """Read rows X (N, D) once, in their order. `y` is ignored.

        Raises a `ValueError` where X or an option is none that can be fitted to, a `MixwellError` where a component
        would lose its positive definite covariance.
        """
        config = self._config()
        first = not hasattr(self, "means_")
        x_ND = validate_data(self, X, dtype=np.float64, reset=first)
        if first:
            self._begin(x_ND, config)
        for x_D in x_ND:
            self._learn(x_D, config)
        return self

    def _begin(self, x_ND: Array, config: Config) -> None:
        D = x_ND.shape[1]
        given = x_ND.std(0) if config.spread is None else config.spread
        spread_D = np.asarray(given, dtype=np.float64)
        if spread_D.shape != (D,):
            raise ValueError(f"spread has shape {spread_D.shape}; expected ({D},)")
        varying_D = np.where(spread_D > 0, spread_D, 1.0)
        self._variance_D = (config.delta * varying_D) ** 2
        self._limit = np.inf
        if config.beta > 0:
            self._limit = float(chi2.ppf(1 - config.beta, D))
        self.means_ = np.empty((0, D))
        self.precisions_ = np.empty((0, D, D))
        self._covariances = np.empty((0, D, D))
        self.log_dets_ = np.empty(0)
        self.masses_ = np.empty(0)
        self.ages_ = np.empty(0)

    def _learn(self, x_D: Array, config: Config) -> None:
        distance_K = self._distances(x_D[None])[0]
        near_K = distance_K < self._limit
        if near_K.any():
            log_joint_K = np.log(self.masses_) - 0.5 * (self.log_dets_ + distance_K)
            self._absorb(x_D, softmax(log_joint_K), config)
        else:
            self._add(x_D)
        self._drop_weak(config)
        self.weights_ = self.masses_ / self.masses_.sum()

    def _drop_weak(self, config: Config) -> None:
        """Leave out what has been there for long and gathered little, unless that is everything."""
        young_K = self.ages_ <= config.age_min
        strong_K = self.masses_ >= config.mass_min
        keep_K = young_K | strong_K
        if keep_K.all() or not keep_K.any():
            return
        for name in ("means_", "precisions_", "_covariances", "log_dets_", "masses_", "ages_"):
            kept = getattr(self, name)[keep_K]
            setattr(self, name, kept)

    def _absorb(self, x_D: Array, posterior_K: Array, config: Config) -> None:
        masses_K = self.masses_ + posterior_K
        rate_K = posterior_K / masses_K
        e_KD = x_D - self.means_
        c_K = gain(rate_K, config.residual)
        if config.form == "precision":
            new = update_precisions(self.precisions_, self.log_dets_, e_KD, rate_K, c_K)
            self.precisions_, self.log_dets_ = new
        else:
            direct = update_covariances(self._covariances, e_KD, rate_K, c_K)
            self._covariances, self.precisions_, self.log_dets_ = direct
        self.means_ = self.means_ + rate_K[:, None] * e_KD
        self.masses_ = masses_K
        self.ages_ = self.ages_ + 1

    def _add(self, x_D: Array) -> None:
        covariance_DD = np.diag(self._variance_D)
        precision_DD = np.diag(1 / self._variance_D)
        log_det = np.log(self._variance_D).sum()
        self.means_ = np.vstack([self.means_, x_D])
        self.precisions_ = np.concatenate([self.precisions_, precision_DD[None]])
        self._covariances = np.concatenate([self._covariances, covariance_DD[None]])
        self.log_dets_ = np.append(self.log_dets_, log_det)
        self.masses_ = np.append(self.masses_, 1.0)
        self.ages_ = np.append(self.ages_, 1.0)

    def _distances(self, x_ND: Array) -> Array:
        e_NKD = x_ND[:, None] - self.means_
        return np.einsum("nki,kij,nkj->nk", e_NKD, self.precisions_, e_NKD, optimize=True)

    def _log_joint(self, X: Any) -> Array:
        check_is_fitted(self, "means_")
        x_ND = validate_data(self, X, dtype=np.float64, reset=False)
        distances_NK = self._distances(x_ND)
        log_roots_K = 0.5 * self.log_dets_
        log_density_NK = log_normal(distances_NK, log_roots_K, x_ND.shape[1])
        return np.log(self.weights_) + log_density_NK

    def score_samples(self, X: Any) -> Array:
        """Log density of every row (N,), in nats; an error before `fit`."""
        return logsumexp(self._log_joint(X), axis=1)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of the rows, in nats."""
        return float(self.score_samples(X).mean())

    def predict_proba(self, X: Any) -> Array:
        """Responsibilities (N, K); an error before `fit`."""
        return softmax(self._log_joint(X), axis=1)

    def predict(self, X: Any) -> Array:
        """The most probable component of every row (N,); an error before `fit`."""
        return self._log_joint(X).argmax(1)

    def conditional_mean(self, known: Any, columns: Any) -> Array:
        """Mean of the other columns (N, D - P), in their order, given values `known` (N, P) of `columns` (P,).

        Raises a `ValueError` where the columns are not as many as the values, repeat, or leave none to predict.
        """
        check_is_fitted(self, "means_")
        D = self.means_.shape[1]
        seen = np.asarray(columns, dtype=int)
        lost = np.setdiff1d(np.arange(D), seen)
        x_NP = check_array(known, dtype=np.float64)
        different = len(np.unique(seen)) == len(seen)
        if x_NP.shape[1] != len(seen) or not different or not len(lost):
            raise ValueError(f"known has {x_NP.shape[1]} columns for {len(seen)} named; expected as many, all "
                             f"different, and fewer than {D}")
        slope_KLP, marginal_KPP = self._split(seen, lost)
        e_NKP = x_NP[:, None] - self.means_[:, seen]
        _, log_det_K = np.linalg.slogdet(marginal_KPP)
        distance_NK = np.einsum("nki,kij,nkj->nk", e_NKP, marginal_KPP, e_NKP)
        log_weights_K = np.log(self.weights_) + 0.5 * log_det_K
        resp_NK = softmax(log_weights_K - 0.5 * distance_NK, axis=1)
        moved_NKL = np.einsum("klp,nkp->nkl", slope_KLP, e_NKP)
        mean_NKL = self.means_[:, lost] + moved_NKL
        return np.einsum("nk,nkl->nl", resp_NK, mean_NKL)

    def _split(self, seen: Array, lost: Array) -> tuple[Array, Array]:
        """What the lost columns' means move by with the seen ones, and the precisions of the seen ones alone."""
        rest_KLL = self.precisions_[:, lost[:, None], lost]
        cross_KLP = self.precisions_[:, lost[:, None], seen]
        own_KPP = self.precisions_[:, seen[:, None], seen]
        slope_KLP = -np.linalg.solve(rest_KLL, cross_KLP)
        cross_KPL = cross_KLP.transpose(0, 2, 1)
        return slope_KLP, own_KPP + cross_KPL @ slope_KLP


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups of points in the plane."""
    label_N = torch.randint(2, (120,), generator=generator)
    noise_ND = torch.randn(120, 2, generator=generator, dtype=torch.float64)
    x_ND = noise_ND + 8 * label_N[:, None]
    return {"estimator": IncrementalGaussianMixture(), "X": x_ND.numpy()}
