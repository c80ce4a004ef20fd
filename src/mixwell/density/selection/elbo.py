"""ELBO selection: the model with the largest evidence lower bound; the rank of probabilistic PCA, the K of a mixture.

**Equation:** ELBO(K) = max over q in F_K of alpha E_q[log p(X | theta)] - KL(q, pi(. | K)), in nats over all rows; the
choice is argmax_K ELBO(K) + log pi_K, and softmax(ELBO + log pi) are the weights. Probabilistic PCA of rank K:
x_n = W z_n + noise, z_n ~ N(0, I_K), noise ~ N(0, I_D / tau), W_dk ~ N(0, s^2), tau known or Gamma(a, b). With
q = q(Z) q(W) q(tau): q(z_n) = N(E[tau] C W^T x_n, C), C = (I + E[tau] E[W^T W])^-1; rows of W have covariance V = (I /
s^2 + alpha E[tau] E[Z^T Z])^-1 and means alpha E[tau] X^T E[Z] V; q(tau) = Gamma(a + alpha N D / 2, b + alpha E|X - Z
W^T|^2 / 2). The bound of a latent model, alpha (E log p(X, Z | theta) - E log q(Z)) - KL(q(theta), pi), never falls.

**Shapes:** X (N, D), Z (N, K), W (D, K); M bounds in, an index and weights (M,) out.

**Reference:** Cherief-Abdellatif (2019), Consistency of ELBO maximization for model selection, arXiv:1810.11859; Bishop
(1999), Variational Principal Components (the updates); Bishop (2006), Pattern Recognition and Machine Learning, 10.2.

**Differs:** the criterion is the paper's; the updates of probabilistic PCA are derived here, its pages not being at
hand. Rows are centred on their mean, which is not integrated out. s is in units of the columns' pooled standard
deviation. Gaussian mixtures are scikit-learn's (alpha = 1): its bound drops terms that depend on K, put back by
`mixture_elbo`; its `reg_covar` counts as scatter that the data lack. No log K! is added for relabelled components.

**Fails when:** the mean-field gap grows with K (rank is chosen too small on few rows), or one start misses the optimum
(mixtures: raise the estimator's `n_init`).

**Cost:** O(N D^2) once and O(D^2 K + K^3) an update of probabilistic PCA, whatever N; mixtures as scikit-learn's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.special import digamma, gammaln, multigammaln, softmax
from sklearn.base import BaseEstimator, DensityMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture
from sklearn.utils.validation import check_is_fitted, validate_data

from mixwell.core.method import method
from mixwell.density._ascent import ascend
from mixwell.density._gaussian import LOG_2PI, Array, divergence, log_prob
from mixwell.density._options import Configured


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the selection; `ValueError` for one out of range."""

    estimator: Any = None  # None: probabilistic PCA; or a BayesianGaussianMixture; or one with n_components and elbo_
    n_components: int | Sequence[int] | None = None  # ranks or K to try; None: ranks 0..D-1 (at most N-1), K 1..10
    log_prior: Literal["uniform", "geometric"] | Sequence[float] = "uniform"  # log pi_K; geometric: -K log 2
    alpha: float = 1.0  # exponent of the likelihood, above 0 up to 1; PCA only
    loading_scale: float = 1.0  # s: prior standard deviation of W, in pooled standard deviations of the columns
    noise_variance: float | None = None  # 1 / tau where it is known, in squared units of X
    noise_prior: tuple[float, float] = (1e-3, 1e-3)  # a, b of tau's gamma prior, in pooled variances
    tol: float = 1e-8  # stop when an update gains less, in nats a row
    max_iter: int = 2000  # updates of a rank

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1 or self.loading_scale <= 0 or min(self.noise_prior) <= 0:
            raise ValueError(f"alpha is {self.alpha}, loading_scale {self.loading_scale}, noise_prior "
                             f"{self.noise_prior}; expected above 0 up to 1, above 0, above 0")
        if (self.noise_variance is not None and self.noise_variance <= 0) or self.tol < 0 or self.max_iter < 1:
            raise ValueError(f"noise_variance is {self.noise_variance}, tol {self.tol}, max_iter {self.max_iter}; "
                             "expected above 0 (or None), at least 0, at least 1")
        if isinstance(self.log_prior, str) and self.log_prior not in ("uniform", "geometric"):
            raise ValueError(f"log_prior is {self.log_prior!r}; expected 'uniform', 'geometric' or one number a model")
        if self.alpha != 1 and self.estimator is not None:
            raise ValueError(f"alpha is {self.alpha}; expected 1 with an estimator, whose own bound is not tempered")


class State(NamedTuple):
    """q(W) and q(tau) of rows in units of their pooled standard deviation."""

    W_DK: Array  # E[W]
    V_KK: Array  # covariance of every row of W
    tau: float  # E[tau]


@dataclass(frozen=True)
class PCA:
    """Variational posterior of probabilistic PCA; `history` is the ELBO after every update, in nats over all rows."""

    mean_D: Array
    loadings_DK: Array  # E[W]
    spread_KK: Array  # V, the covariance of every row of W
    noise_variance: float  # 1 / E[tau]
    history: list[float]

    @property
    def elbo(self) -> float:
        """The bound that was reached."""
        return self.history[-1]

    @property
    def covariance_DD(self) -> Array:
        """E[W W^T] + I / E[tau]."""
        own = float(np.trace(self.spread_KK)) + self.noise_variance
        eye_DD = np.eye(len(self.mean_D))
        return self.loadings_DK @ self.loadings_DK.T + own * eye_DD

    def score_samples(self, X: Array) -> Array:
        """Log density (N,) of the normal with this mean and covariance, in nats."""
        return log_prob(X - self.mean_D, self.covariance_DD)


def choose(elbos: Sequence[float], log_prior: Sequence[float] | None = None) -> tuple[int, Array]:
    """Index of the largest ELBO + log prior (the first of equals), and the models' weights (M,).

    Raises a `ValueError` where there are not as many priors as bounds, or a bound is not finite.
    """
    elbo_M = np.asarray(elbos, dtype=np.float64)
    prior_M = np.zeros_like(elbo_M)
    if log_prior is not None:
        prior_M = np.asarray(log_prior, dtype=np.float64)
    if elbo_M.ndim != 1 or not len(elbo_M) or prior_M.shape != elbo_M.shape:
        raise ValueError(f"got bounds of shape {elbo_M.shape} and log priors of shape {prior_M.shape}; expected one or "
                         "more, and as many of each")
    if not np.isfinite(elbo_M).all() or not np.isfinite(prior_M.max()):
        raise ValueError(f"got bounds {elbo_M.tolist()} and log priors {prior_M.tolist()}; expected finite numbers (a "
                         "prior may be -inf)")
    total_M = elbo_M + prior_M
    return int(total_M.argmax()), softmax(total_M)


def update(state: State, gram_DD: Array, rows: int, known: float | None, config: Config) -> tuple[State, float]:
    """q(Z), then q(W), then q(tau), each at its best given the others; and the ELBO of all three, in nats."""
    W_DK, V_KK, tau = state
    D, K = W_DK.shape
    eye_KK = np.eye(K)
    WW_KK = W_DK.T @ W_DK + D * V_KK
    C_KK = np.linalg.inv(eye_KK + tau * WW_KK)
    XZ_DK = tau * gram_DD @ W_DK @ C_KK
    ZZ_KK = tau * C_KK @ W_DK.T @ XZ_DK + rows * C_KK
    prior = config.loading_scale**2
    V_KK = np.linalg.inv(eye_KK / prior + config.alpha * tau * ZZ_KK)
    W_DK = config.alpha * tau * XZ_DK @ V_KK
    WW_KK = W_DK.T @ W_DK + D * V_KK
    cross = 2 * (W_DK * XZ_DK).sum()
    error = float(np.trace(gram_DD) - cross + (WW_KK * ZZ_KK).sum())
    tau, log_tau, kl_tau = _noise(error, rows * D, known, config)
    log_scale = rows * D * (log_tau - LOG_2PI)
    fit = 0.5 * (log_scale - tau * error)
    kl_Z = divergence(np.trace(ZZ_KK), -rows * _log_det(C_KK), rows * K)
    kl_W = divergence(np.trace(WW_KK) / prior, -D * _log_det(V_KK / prior), D * K)
    elbo = config.alpha * (fit - kl_Z) - kl_W - kl_tau
    return State(W_DK, V_KK, tau), float(elbo)


def _log_det(matrix: Array) -> float:
    _, value = np.linalg.slogdet(matrix)
    return value


def _noise(error: float, size: int, known: float | None, config: Config) -> tuple[float, float, float]:
    """E[tau], E[log tau] and KL(q(tau), prior) given E|X - Z W^T|^2 over `size` numbers."""
    if known is not None:
        return known, math.log(known), 0.0
    half = 0.5 * config.alpha
    a0, b0 = config.noise_prior
    a, b = a0 + half * size, b0 + half * error
    shape = (a - a0) * digamma(a) - gammaln(a) + gammaln(a0)
    rate = a0 * math.log(b / b0)
    kl = shape + rate + a * (b0 / b - 1)
    log_tau = float(digamma(a)) - math.log(b)
    return a / b, log_tau, float(kl)


def fit_pca(x_ND: Array, rank: int, config: Config) -> PCA:
    """Coordinate ascent from the maximum likelihood solution."""
    N, D = x_ND.shape
    mean_D = x_ND.mean(0)
    centred_ND = x_ND - mean_D
    square = float((centred_ND**2).mean())
    unit = math.sqrt(square) or 1.0
    gram_DD = centred_ND.T @ centred_ND / unit**2
    known = None if config.noise_variance is None else unit**2 / config.noise_variance
    rescaling = config.alpha * N * D * math.log(unit)

    def step(state: State) -> tuple[State, float]:
        new, elbo = update(state, gram_DD, N, known, config)
        return new, elbo - rescaling

    start = _start(gram_DD / N, rank, known)
    enough = math.nextafter(config.tol * N, math.inf)  # a gain of just the tolerance ends it, so that 0 can be one
    run = ascend(step, start, tol=enough, max_iter=config.max_iter, ahead=True)
    if not run.converged:
        warnings.warn(f"rank {rank} did not converge in {config.max_iter} updates; raise max_iter or tol",
                      ConvergenceWarning, stacklevel=2)
    W_DK, V_KK, tau = run.state
    return PCA(mean_D, unit * W_DK, unit**2 * V_KK, unit**2 / tau, run.bounds)


def _start(covariance_DD: Array, rank: int, known: float | None) -> State:
    """Loadings and precision of maximum likelihood, kept away from zero."""
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    values_D = np.maximum(values_D, 1e-9)
    rest = len(values_D) - rank
    if known is not None:
        noise = 1 / known
    elif rest:
        noise = values_D[:rest].mean()
    else:
        noise = 0.5 * values_D[0]
    own_K = values_D[rest:]
    above_K = np.maximum(own_K - noise, 0.01 * own_K)
    W_DK = vectors_DD[:, rest:] * np.sqrt(above_K)
    V_KK = np.zeros((rank, rank))
    return State(W_DK, V_KK, float(1 / noise))


def mixture_elbo(model: BayesianGaussianMixture, rows: int) -> float:
    """The bound of a fitted scikit-learn mixture with the constants that its `lower_bound_` leaves out, in nats.

    Wants covariance_type="full" and weight_concentration_prior_type="dirichlet_distribution" (`ValueError`).
    """
    if model.covariance_type != "full" or model.weight_concentration_prior_type != "dirichlet_distribution":
        raise ValueError(f"got covariance_type={model.covariance_type!r}, weight_concentration_prior_type="
                         f"{model.weight_concentration_prior_type!r}; expected 'full' and 'dirichlet_distribution'")
    K, D = model.means_.shape
    half = 0.5 * model.degrees_of_freedom_prior_
    concentration = model.weight_concentration_prior_
    pi_terms = 0.25 * D * (D - 1) * math.log(math.pi)  # scikit-learn's gamma functions come without
    log_scale = _log_det(model.covariance_prior_) - D * math.log(2)
    wishart = half * log_scale - multigammaln(half, D) + pi_terms
    weights = gammaln(K * concentration) - K * gammaln(concentration)
    means = 0.5 * D * math.log(model.mean_precision_prior_)
    prior = weights + K * (wishart + means)
    constant = 0.5 * rows * D * LOG_2PI
    return float(model.lower_bound_ + prior - constant)


@method(
    title="ELBO selection",
    paper="Consistency of ELBO maximization for model selection",
    year=2019,
    tags={"estimator", "density", "sklearn"},
)
class ElboSelection(DensityMixin, Configured, BaseEstimator, config=Config):
    """Fits every model of a list by variational Bayes and keeps the one of largest ELBO + log prior; see `Config`.

    Fitted: `elbos_` (number -> nats over all rows), `weights_` of the models in that order, `n_components_` and `best_`
    (a `PCA`, or the estimator).
    """

    def fit(self, X: Any, y: Any = None) -> ElboSelection:
        """Fit all to X (N, D) and choose; returns self.

        Raises a `ValueError` where options or X are none that can be fitted, or an estimator has no bound.
        """
        config = self._config()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        N, D = X.shape
        numbers = self._numbers(config, N, D)
        fitted, elbos = {}, []
        for k in numbers:
            fitted[k] = _fit_one(X, k, config)
            elbos.append(_bound(fitted[k], N))
        self.elbos_ = dict(zip(numbers, elbos))
        log_prior = _log_prior(config, numbers)
        index, self.weights_ = choose(elbos, log_prior)
        self.n_components_ = numbers[index]
        self.best_ = fitted[self.n_components_]
        return self

    @staticmethod
    def _numbers(config: Config, N: int, D: int) -> list[int]:
        if config.estimator is None:
            lowest, highest = 0, D
            default = range(min(D, N))
        else:
            lowest, highest = 1, N
            default = range(1, min(N, 10) + 1)
        given: Any = default if config.n_components is None else config.n_components
        if isinstance(given, (int, np.integer)):
            given = [int(given)]
        numbers: list[int] = list(given)
        repeated = len(set(numbers)) < len(numbers)
        if not numbers or repeated or min(numbers) < lowest or max(numbers) > highest:
            raise ValueError(f"n_components is {numbers}; expected different numbers from {lowest} to {highest}")
        return numbers

    def score_samples(self, X: Any) -> Array:
        """Log density (N,) by the chosen model, in nats."""
        check_is_fitted(self, "best_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self.best_.score_samples(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density by the chosen model, in nats."""
        return float(self.score_samples(X).mean())


def _fit_one(x_ND: Array, k: int, config: Config) -> Any:
    """The model of one number of components."""
    if config.estimator is None:
        return fit_pca(x_ND, k, config)
    return clone(config.estimator).set_params(n_components=k).fit(x_ND)


def _log_prior(config: Config, numbers: list[int]) -> Any:
    """Log prior of every model, or none."""
    if not isinstance(config.log_prior, str):
        return config.log_prior
    fall = math.log(2) if config.log_prior == "geometric" else 0.0
    return [-k * fall for k in numbers]


def _bound(model: Any, rows: int) -> float:
    """The ELBO of a fitted model, in nats over all rows."""
    if isinstance(model, PCA):
        return model.elbo
    if isinstance(model, BayesianGaussianMixture):
        return mixture_elbo(model, rows)
    if not hasattr(model, "elbo_"):
        raise ValueError(f"{type(model).__name__} has no elbo_ after fit; expected a BayesianGaussianMixture or an "
                         "estimator with one, in nats over all rows and with all constants")
    return float(model.elbo_)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Rows in six dimensions around a plane."""
    z_NK = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    W_KD = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    noise_ND = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    plane_ND = z_NK @ (2.0 * W_KD)
    x_ND = plane_ND + 0.5 * noise_ND
    return {
        "estimator": ElboSelection(),
        "X": x_ND.numpy(),
    }
