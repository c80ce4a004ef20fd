"""Nonparametric deconvolution model: rows that average particles of several factors, and each row's own factors.

**Equation:** beta'_k ~ Beta(1, alpha_0), beta_k = beta'_k prod_{l<k} (1 - beta'_l); pi'_nk ~ Gamma(alpha beta_k, 1),
pi_n = pi'_n / sum_l pi'_nl; mu_k ~ N(mu_0, sigma_0^2), Sigma_k ~ IW(Psi, nu); the mean of factor k's particles in row n
is x_nk ~ N(mu_k, Sigma_k / (P_n pi_nk)); y_nd ~ f(g(theta_nd), eta_d) with theta_n = sum_k pi_nk x_nk.
With V_n = eta + sum_k pi_nk Sigma_k / P_n and an identity link y_n | pi_n ~ N(pi_n mu, V_n), and E[x_nk | pi_n, y_n] =
mu_k + Sigma_k u_n / P_n with u_n = V_n^-1 (y_n - pi_n mu). Posterior: points for mu, Sigma, eta, beta; q(log pi'_n) =
N(m_n, Lambda_n^-1), averaged over the 2 K points m_n +- sqrt(K) columns of chol(Lambda_n^-1); q(x_n | pi_n) exact for
the identity link, else as if y_n were a Gaussian site N(t_n; theta_n, v_n), from slope and curvature of E_q log f.

**Shapes:** X (N, D), `n_particles` (N,); `weights_` (N, K), `local_factors_` (N, K, D), `factor_means_` (K, D),
`factor_covariances_` (K, D, D), `global_weights_` (K,). In code also S = 2 K points and Q quadrature nodes.

**Reference:** Chaney, Verma, Lee and Engelhardt (2020), Nonparametric Deconvolution Models, arXiv:2003.07718: sections
3 (process, links) and 4 (inference), appendix (start). Zhou, Hu, Zhou and Lange (2019), MM Algorithms for Variance
Components Models, for the step in Sigma; Khan and Lin (2017), arXiv:1703.04265, for sites (both from memory).

**Differs:** the paper's q is a mean field of a Dirichlet and Gaussians, moved by black-box gradients. Here x_n depends
on pi_n, weights are Gaussian in logs (points would push the means outwards), and steps go as far as the bound, on those
2 K points, rises. The paper's update of Sigma_k counts sum_n P_n pi_nk observations; in the bound each x_nk is one.
Factors are truncated at K, not split and merged. P_n is given (1 where it is not), not Poisson. Only normal (identity),
Poisson (soft-plus), beta (sigmoid, with a constant dispersion, not deviation). Priors scale with features' variances.

**Fails when:** weights vary little or no row comes near a corner: means are then known only up to mixing. Local shifts
as wide as the differences between rows leave k-means, the start, in a poor maximum. Empty factors keep a little weight.

**Cost:** O(K N (K D^2 + D^3) + K^3 D^3) time an iteration, O(K N D^2) memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import logit, softmax
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.utils.validation import check_is_fitted, validate_data

from mixwell.core.method import method
from mixwell.density._ascent import ascend
from mixwell.density._gaussian import Array
from mixwell.density._options import Configured
from mixwell.density.latent._factor_steps import row_step, sweep
from mixwell.density.latent._factors import (
    LINKS,
    SMALLEST_SHAPE,
    Factors,
    Rows,
    condition,
    row_bounds,
    shapes,
    weight_points,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the deconvolution model; `ValueError` for one out of range."""

    n_factors: int = 10  # K: the most factors there may be
    distribution: Literal["normal", "poisson", "beta"] = "normal"  # f, with its link g
    local: bool = True  # False: x_nk = mu_k, an admixture without local factors, whose eta is fitted (normal)
    global_concentration: float = 1.0  # alpha_0
    local_concentration: float = 10.0  # alpha
    noise: float = 0.01  # eta: share of the feature's variance (normal), of mean (1 - mean) (beta)
    mean_scale: float = 3.0  # sigma_0, in standard deviations of the feature
    local_scale: float = 0.1  # Psi: Sigma_k / P starts at this share of the feature's variance
    max_iter: int = 200
    tol: float = 1e-3  # stop when an iteration gains less, in nats a row
    random_state: Any = None

    def __post_init__(self) -> None:
        counts = ("n_factors", "max_iter")
        sizes = ("global_concentration", "local_concentration", "mean_scale", "local_scale")
        for name in (*counts, *sizes):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} is {value}; expected above 0")
        if self.distribution not in LINKS:
            known = ", ".join(LINKS)
            raise ValueError(f"distribution is {self.distribution!r}; expected one of {known}")
        if not 0 < self.noise < 1:
            raise ValueError(f"noise is {self.noise}; expected between 0 and 1")
        if self.tol < 0:
            raise ValueError(f"tol is {self.tol}; expected 0 or more")


def begin(X: Array, particles_N: Array, shape_NK: Array, factors: Factors, config: Config) -> Rows:
    """Rows whose pi'_n is believed to be near `shape_NK`."""
    N, K = shape_NK.shape
    curve_NK = shape_NK[:, :, None] + 1
    var_D = factors.prior_var_D * (config.distribution != "normal")
    return Rows(
        y_ND=X.copy(),
        particles_N=particles_N,
        log_mean_NK=np.log(shape_NK),
        precision_NKK=curve_NK * np.eye(K),
        site_ND=LINKS[config.distribution].inverse(X),
        site_var_ND=np.tile(var_D, (N, 1)),
    )


def start(X: Array, particles_N: Array, config: Config) -> tuple[Rows, Factors]:
    """k-means with fuzzy labels, largest cluster first."""
    theta_ND = LINKS[config.distribution].inverse(X)
    spread_D = theta_ND.var(0)
    var_D = np.maximum(spread_D, 1e-6 * spread_D.max() + 1e-12)
    centre_KD, label_NK = _fuzzy_clusters(theta_ND, var_D, config)
    factors = _first_factors(theta_ND, var_D, centre_KD, label_NK.mean(0), particles_N.mean(), config)
    shape_NK = config.local_concentration * label_NK + SMALLEST_SHAPE
    return begin(X, particles_N, shape_NK, factors, config), factors


def _fuzzy_clusters(theta_ND: Array, var_D: Array, config: Config) -> tuple[Array, Array]:
    """Centres (K, D) of k-means, the largest cluster's first, and rows' shares in them (N, K)."""
    kmeans = KMeans(config.n_factors, n_init=1, random_state=config.random_state)
    centre_KD = kmeans.fit(theta_ND).cluster_centers_
    gap_NKD = theta_ND[:, None] - centre_KD
    square_NK = (gap_NKD**2 / var_D).sum(-1)
    label_NK = softmax(-np.log(square_NK + 1e-3), axis=1)
    order = np.argsort(-label_NK.sum(0), kind="stable")
    return centre_KD[order], label_NK[:, order]


def _first_factors(theta_ND: Array, var_D: Array, centre_KD: Array, share_K: Array, particles: float,
                   config: Config) -> Factors:
    """Factors at the clusters' centres, with the clusters' shares, and priors on the features' scales."""
    left_K = np.cumsum(share_K[::-1])[::-1]
    stick_K = np.clip(share_K / left_K, 1e-6, 1 - 1e-6)
    scatter_D = config.local_scale * var_D * particles
    cov_DD = np.diag(scatter_D) * config.local
    return Factors(
        odds_K=logit(stick_K),
        mean_KD=centre_KD,
        cov_KDD=np.tile(cov_DD, (len(centre_KD), 1, 1)),
        noise_D=var_D * config.noise * (config.distribution == "normal"),
        prior_mean_D=theta_ND.mean(0),
        prior_var_D=config.mean_scale**2 * var_D,
        scatter_D=scatter_D,
    )


@method(title="Nonparametric deconvolution model", paper="Nonparametric Deconvolution Models", year=2020,
        tags={"estimator", "em", "sklearn"})
class DeconvolutionModel(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Configured, BaseEstimator, config=Config):
    """Factors of averaged rows, and every row's own version of them; see the module's card.

    After `fit`: `weights_`, `local_factors_`, `factor_means_`, `factor_covariances_` (zeros without local factors),
    `global_weights_`, `noise_` (D,) (zeros unless normal), `elbo_` (nats, one an iteration, up to a constant),
    `n_factors_` (those with a mean weight above a hundredth). `n_particles` (N,) defaults to one in every row.
    """

    def fit(self, X: Any, y: Any = None, n_particles: Any = None) -> DeconvolutionModel:
        """Fit rows X (N, D); returns self.

        `ValueError` for options out of range, values beyond the distribution's, or `n_particles` that are not one
        positive number a row.
        """
        config = self._config()
        X, particles_N = self._checked(X, n_particles, config, reset=True)
        run = ascend(
            lambda state: sweep(*state, config),
            start(X, particles_N, config),
            tol=config.tol * len(X),
            max_iter=config.max_iter,
            ahead=True,
        )
        _, factors = run.state
        self._factors = factors
        self.elbo_ = run.bounds
        self.n_iter_ = len(run.bounds)
        self._n_features_out = config.n_factors
        self.factor_means_ = factors.mean_KD
        self.factor_covariances_ = factors.cov_KDD
        self.noise_ = factors.noise_D
        shape_K = shapes(factors.odds_K, config)
        self.global_weights_ = (shape_K - SMALLEST_SHAPE) / config.local_concentration
        self.weights_, self.local_factors_ = self.deconvolve(X, n_particles)
        self.n_factors_ = int((self.weights_.mean(0) > 0.01).sum())
        return self

    def deconvolve(self, X: Any, n_particles: Any = None) -> tuple[Array, Array]:
        """Posterior means of weights (N, K) and of local factors (N, K, D) of rows X (N, D); errors as in `fit`."""
        rows, factors = self._infer(X, n_particles), self._factors
        pi_SNK, _ = weight_points(rows)
        u_SND, _, _ = condition(pi_SNK, rows, factors)
        shift_ND = u_SND.mean(0) / rows.particles_N[:, None]
        moved_NKD = np.einsum("kde,ne->nkd", factors.cov_KDD, shift_ND)
        return pi_SNK.mean(0), factors.mean_KD + moved_NKD

    def transform(self, X: Any, n_particles: Any = None) -> Array:
        """Weights (N, K) of rows X (N, D); errors as in `fit`."""
        weights_NK, _ = self.deconvolve(X, n_particles)
        return weights_NK

    def fit_transform(self, X: Any, y: Any = None, n_particles: Any = None) -> Array:
        """Fit, and the weights (N, K) of the same rows; errors as in `fit`."""
        return self.fit(X, n_particles=n_particles).weights_

    def reconstruct(self, X: Any, n_particles: Any = None) -> Array:
        """Rows (N, D) as the model sees them: g of the posterior mean of theta; errors as in `fit`."""
        rows, factors = self._infer(X, n_particles), self._factors
        pi_SNK, _ = weight_points(rows)
        u_SND, _, _ = condition(pi_SNK, rows, factors)
        noise_ND = factors.noise_D + rows.site_var_ND
        theta_ND = rows.site_ND - noise_ND * u_SND.mean(0)
        return LINKS[self._config().distribution].mean(theta_ND)

    def score(self, X: Any, y: Any = None, n_particles: Any = None) -> float:
        """Mean lower bound on the log density of rows X (N, D), in nats a row; errors as in `fit`."""
        rows = self._infer(X, n_particles)
        bounds_N = row_bounds(rows, self._factors, self._config())
        return float(bounds_N.mean())

    def _infer(self, X: Any, n_particles: Any) -> Rows:
        check_is_fitted(self)
        config, factors = self._config(), self._factors
        X, particles_N = self._checked(X, n_particles, config, reset=False)
        shape_NK = np.tile(shapes(factors.odds_K, config), (len(X), 1))
        rows = begin(X, particles_N, shape_NK, factors, config)
        for _ in range(100):
            before, rows = rows, row_step(rows, factors, config)
            same_weights = np.array_equal(before.log_mean_NK, rows.log_mean_NK)
            if same_weights and np.allclose(before.site_ND, rows.site_ND):
                break
        return rows

    def _checked(self, X: Any, n_particles: Any, config: Config, reset: bool) -> tuple[Array, Array]:
        X = validate_data(self, X, dtype=np.float64, reset=reset)
        low, high = LINKS[config.distribution][:2]
        least, most = X.min(), X.max()
        if least < low or most > high:
            raise ValueError(f"X goes from {least} to {most}; {config.distribution} expected {low} to {high}")
        expected = (len(X),)
        if n_particles is None:
            return X, np.ones(expected)
        particles_N = np.array(n_particles, dtype=np.float64)
        if particles_N.shape != expected or not (particles_N > 0).all():
            raise ValueError(f"n_particles has shape {particles_N.shape}; expected ({len(X)},), all above 0")
        return X, particles_N


def example(generator: torch.Generator) -> dict[str, Any]:
    """Forty rows that mix two factors."""
    noise_ND = torch.randn(40, 3, generator=generator)
    share_N1 = torch.rand(40, 1, generator=generator)
    x_ND = noise_ND + 20 * share_N1
    return {
        "estimator": DeconvolutionModel(n_factors=2, max_iter=10, random_state=0),
        "X": x_ND.numpy(),
    }
