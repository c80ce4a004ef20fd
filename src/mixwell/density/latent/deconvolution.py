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

import math
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import betaln, digamma, expit, gammaln, log_expit, logit, softmax, xlogy
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.utils.validation import check_is_fitted, validate_data

from mixwell.core.method import method
from mixwell.density._ascent import ascend
from mixwell.density._gaussian import LOG_2PI, Array, log_normal, outer
from mixwell.density._options import Configured

LINKS: dict[str, Any] = {  # between what observations lie, g, and its inverse, finite for counts of zero
    "normal": (-math.inf, math.inf, np.array, np.array),
    "poisson": (0.0, math.inf, partial(np.logaddexp, 0), lambda mean: mean + np.log(-np.expm1(-np.maximum(mean, 0.5)))),
    "beta": (1e-300, 1 - 1e-16, expit, logit),
}
NODES_Q, NODE_MASS_Q = np.array(np.polynomial.hermite_e.hermegauss(16)) / [[1.0], [math.sqrt(2 * math.pi)]]
STEPS = (1.0, 0.5, 0.25, 0.1, 0.02)  # shares of a step, tried in turn
SMALLEST_SHAPE = 1e-3  # added to alpha beta_k, so that empty factors' gammas stay finite


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the deconvolution model."""

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
        for name, value in vars(self).items():
            if name not in ("distribution", "local", "noise", "tol", "random_state") and value <= 0:
                raise ValueError(f"{name} is {value}; expected above 0")
        if self.distribution not in LINKS:
            raise ValueError(f"distribution is {self.distribution!r}; expected one of {', '.join(LINKS)}")
        if not 0 < self.noise < 1 or self.tol < 0:
            raise ValueError(f"noise is {self.noise}, tol {self.tol}; expected 0 < noise < 1 and tol 0 or more")


@dataclass(frozen=True)
class Factors:
    """What all rows share, and the constants of its priors."""

    odds_K: Array  # log odds of beta'_k; the last stick takes the rest
    mean_KD: Array
    cov_KDD: Array
    noise_D: Array  # eta; zeros where sites stand for the observations
    prior_mean_D: Array
    prior_var_D: Array
    scatter_D: Array  # diagonal of Psi; nu = D + 2


@dataclass(frozen=True)
class Rows:
    """Observations and what is believed of each."""

    y_ND: Array
    particles_N: Array
    log_mean_NK: Array  # m
    precision_NKK: Array  # Lambda
    site_ND: Array  # t; y where the link is the identity
    site_var_ND: Array  # v; zeros where the link is the identity

    def take(self, index: Array) -> Rows:
        """Copies of some of the rows."""
        return Rows(*(getattr(self, field.name)[index] for field in fields(Rows)))


def log_at_nodes(y: Array, mean_SND: Array, var_SND: Array, config: Config) -> Array:
    """log f(y | g(theta)) of Poisson and beta observations at theta's quadrature nodes (Q, S, N, D), in nats."""
    mean = LINKS[config.distribution][2](mean_SND + np.sqrt(var_SND) * NODES_Q[:, None, None, None])
    if config.distribution == "poisson":
        return xlogy(y, np.maximum(mean, 1e-9)) - mean - gammaln(y + 1)
    total, mean = 1 / config.noise - 1, np.clip(mean, 1e-9, 1 - 1e-9)
    a, b = total * mean, total * (1 - mean)
    return (a - 1) * np.log(y) + (b - 1) * np.log1p(-y) - betaln(a, b)


def shapes(odds_K: Array, config: Config) -> Array:
    """alpha beta_k (K,)."""
    beta_K = np.append(expit(odds_K[:-1]), 1.0) * np.append(1.0, np.cumprod(expit(-odds_K[:-1])))
    return config.local_concentration * beta_K + SMALLEST_SHAPE


def weight_points(rows: Rows) -> tuple[Array, Array]:
    """pi_n at the points that stand for q, all with the same mass (2 K, N, K), and E pi'_nk (N, K)."""
    K, cov_NKK = rows.log_mean_NK.shape[1], np.linalg.inv(rows.precision_NKK)
    offset_KNK = math.sqrt(K) * np.moveaxis(np.linalg.cholesky(cov_NKK), 2, 0)
    gammas_NK = np.exp(np.minimum(rows.log_mean_NK + 0.5 * np.einsum("nkk->nk", cov_NKK), 50))
    return softmax(rows.log_mean_NK + np.concatenate([offset_KNK, -offset_KNK]), axis=-1), gammas_NK


def condition(pi_SNK: Array, rows: Rows, factors: Factors) -> tuple[Array, Array, Array]:
    """u_n (S, N, D), V_n^-1 (S, N, D, D) and log N(t_n; pi_n mu, V_n) (S, N) in nats."""
    K, D = factors.mean_KD.shape
    V_SNDD = (pi_SNK / rows.particles_N[:, None] @ factors.cov_KDD.reshape(K, -1)).reshape(*pi_SNK.shape[:2], D, D)
    V_SNDD[..., np.arange(D), np.arange(D)] += factors.noise_D + rows.site_var_ND
    inverse_SNDD, r_SND = np.linalg.inv(V_SNDD), rows.site_ND - pi_SNK @ factors.mean_KD
    u_SND = (inverse_SNDD @ r_SND[..., None])[..., 0]
    return u_SND, inverse_SNDD, log_normal((r_SND * u_SND).sum(-1), 0.5 * np.linalg.slogdet(V_SNDD)[1], D)


def theta_posterior(u_SND: Array, inverse_SNDD: Array, rows: Rows, factors: Factors) -> tuple[Array, Array]:
    """Means and variances of theta_n under q, both (S, N, D)."""
    noise_ND = factors.noise_D + rows.site_var_ND
    var_SND = noise_ND - noise_ND**2 * np.einsum("sndd->snd", inverse_SNDD)
    return rows.site_ND - noise_ND * u_SND, np.maximum(var_SND, 1e-8 * noise_ND)


def row_bounds(rows: Rows, factors: Factors, config: Config) -> Array:
    """Every row's part of the bound (N,), in nats."""
    pi_SNK, gammas_NK = weight_points(rows)
    u_SND, inverse_SNDD, log_SN = condition(pi_SNK, rows, factors)
    if config.distribution != "normal":
        mean_SND, var_SND = theta_posterior(u_SND, inverse_SNDD, rows, factors)
        gain_SND = np.tensordot(NODE_MASS_Q, log_at_nodes(rows.y_ND, mean_SND, var_SND, config), 1)
        square_SND = ((rows.site_ND - mean_SND) ** 2 + var_SND) / rows.site_var_ND
        site_SND = log_normal(square_SND, 0.5 * np.log(rows.site_var_ND))  # what stood in for the observation
        log_SN = log_SN + (gain_SND - site_SND).sum(-1)
    shape_K = shapes(factors.odds_K, config)
    prior_N = (shape_K * rows.log_mean_NK - gammas_NK - gammaln(shape_K)).sum(1)
    entropy_N = 0.5 * (len(shape_K) * (LOG_2PI + 1) - np.linalg.slogdet(rows.precision_NKK)[1])
    return log_SN.mean(0) + prior_N + entropy_N


def total_bound(rows: Rows, factors: Factors, config: Config) -> float:
    """The bound in nats: rows' parts and, up to constants, the log priors of what is a point."""
    value = (log_expit(factors.odds_K) + config.global_concentration * log_expit(-factors.odds_K)).sum()
    value += row_bounds(rows, factors, config).sum()
    value -= 0.5 * ((factors.mean_KD - factors.prior_mean_D) ** 2 / factors.prior_var_D).sum()
    if config.local:
        spread_K = np.einsum("kdd,d->k", np.linalg.inv(factors.cov_KDD), factors.scatter_D)
        value -= 0.5 * (spread_K + (2 * len(factors.noise_D) + 3) * np.linalg.slogdet(factors.cov_KDD)[1]).sum()
    return float(value)


def climb(rows: Rows, tries: list[Rows], factors: Factors, config: Config, gain: float) -> Rows:
    """Each row moves to the first of the tries that raises its bound by more than `gain` nats, or stays."""
    waiting = np.arange(len(rows.y_ND))
    found, before_N = rows.take(waiting), row_bounds(rows, factors, config)
    for tried in tries:
        better = row_bounds(tried.take(waiting), factors, config) > before_N[waiting] + gain
        for field in fields(Rows):
            getattr(found, field.name)[waiting[better]] = getattr(tried, field.name)[waiting[better]]
        waiting = waiting[~better]
        if not len(waiting):
            break
    return found


def row_step(rows: Rows, factors: Factors, config: Config) -> Rows:
    """New sites, then a step on q(log pi'_n) along its slope over Gauss and Newton's curvature; no bound falls."""
    rows = rows if config.distribution == "normal" else site_step(rows, factors, config)
    pi_SNK, gammas_NK = weight_points(rows)
    u_SND, inverse_SNDD, _ = condition(pi_SNK, rows, factors)
    spread_SNP = (outer(u_SND, u_SND) - inverse_SNDD).reshape(*u_SND.shape[:2], -1)
    spread_SNK = spread_SNP @ factors.cov_KDD.reshape(len(factors.cov_KDD), -1).T
    slope_SNK = u_SND @ factors.mean_KD.T + 0.5 * spread_SNK / rows.particles_N[:, None]
    slope_SNK = pi_SNK * (slope_SNK - (pi_SNK * slope_SNK).sum(-1, keepdims=True))
    jacobian_SNKD = pi_SNK[..., None] * (factors.mean_KD - (pi_SNK @ factors.mean_KD)[:, :, None])
    curve_NKK = (jacobian_SNKD @ inverse_SNDD @ jacobian_SNKD.swapaxes(-1, -2)).mean(0)
    curve_NKK += gammas_NK[:, :, None] * np.eye(gammas_NK.shape[1])
    slope_NK = slope_SNK.mean(0) + shapes(factors.odds_K, config) - gammas_NK
    move_NK = np.linalg.solve(curve_NKK, slope_NK[..., None])[..., 0]
    move_NK *= np.minimum(1, 3 / np.maximum(np.abs(move_NK).max(1, keepdims=True), 1e-9))
    tries = [replace(rows, log_mean_NK=rows.log_mean_NK + share * move_NK) for share in STEPS]
    return climb(rows, [replace(tries[0], precision_NKK=curve_NKK), *tries], factors, config, 1e-6)


def site_step(rows: Rows, factors: Factors, config: Config) -> Rows:
    """A step to the sites that the slope and the curvature of E_q log f ask for."""
    u_SND, inverse_SNDD, _ = condition(weight_points(rows)[0], rows, factors)
    mean_SND, var_SND = theta_posterior(u_SND, inverse_SNDD, rows, factors)
    log_QSND = log_at_nodes(rows.y_ND, mean_SND, var_SND, config)
    log_QSND -= log_QSND.mean(0)
    slope_ND = (np.tensordot(NODE_MASS_Q * NODES_Q, log_QSND, 1) / np.sqrt(var_SND)).mean(0)
    curve_ND = -(np.tensordot(NODE_MASS_Q * (NODES_Q**2 - 1), log_QSND, 1) / var_SND).mean(0)
    curve_ND = np.maximum(curve_ND, 1e-3 / rows.site_var_ND)
    pull_ND, tries = curve_ND * mean_SND.mean(0) + slope_ND, []
    for share in STEPS:
        precision_ND = (1 - share) / rows.site_var_ND + share * curve_ND
        site_ND = ((1 - share) * rows.site_ND / rows.site_var_ND + share * pull_ND) / precision_ND
        tries.append(replace(rows, site_ND=site_ND, site_var_ND=1 / precision_ND))
    return climb(rows, tries, factors, config, -1e-9)  # an admixture's bound does not depend on its sites


def best_odds(rows: Rows, factors: Factors, config: Config) -> Factors:
    """Sticks that maximise E log p(pi' | beta) + log p(beta)."""
    N, sums_K = len(rows.y_ND), rows.log_mean_NK.sum(0)

    def loss(odds_K: Array) -> tuple[float, Array]:
        shape_K, share_K = shapes(odds_K, config), expit(odds_K)
        value = shape_K @ sums_K - N * gammaln(shape_K).sum()
        value += (log_expit(odds_K) + config.global_concentration * log_expit(-odds_K)).sum()
        flow_K = (shape_K - SMALLEST_SHAPE) * (sums_K - N * digamma(shape_K))
        later_K, own_K = flow_K.sum() - np.cumsum(flow_K), np.append(flow_K[:-1], 0.0)
        return -value, -((1 - share_K) * (own_K + 1) - share_K * (later_K + config.global_concentration))

    return replace(factors, odds_K=minimize(loss, factors.odds_K, jac=True, bounds=[(-20, 20)] * len(sums_K)).x)


def best_means(rows: Rows, factors: Factors, config: Config) -> Factors:
    """mu by generalised least squares, with x integrated out."""
    K, D = factors.mean_KD.shape
    pi_SNK, _ = weight_points(rows)
    inverse_SNDD = condition(pi_SNK, rows, factors)[1]
    pairs_MP = outer(pi_SNK, pi_SNK).reshape(-1, K * K)
    normal_KKDD = (pairs_MP.T @ inverse_SNDD.reshape(-1, D * D) / len(pi_SNK)).reshape(K, K, D, D)
    normal = normal_KKDD.swapaxes(1, 2).reshape(K * D, K * D) + np.diag(np.tile(1 / factors.prior_var_D, K))
    right_KD = np.einsum("snk,snde,ne->kd", pi_SNK, inverse_SNDD, rows.site_ND) / len(pi_SNK)
    right_KD += factors.prior_mean_D / factors.prior_var_D
    return replace(factors, mean_KD=np.linalg.solve(normal, right_KD.ravel()).reshape(K, D))


def best_spreads(rows: Rows, factors: Factors, config: Config) -> Factors:
    """Sigma, or eta without local factors, by maximising a minorant: Sigma_k B_k Sigma_k = C_k below."""
    K, D = factors.mean_KD.shape
    pi_SNK, _ = weight_points(rows)
    u_SND, inverse_SNDD, _ = condition(pi_SNK, rows, factors)
    if not config.local:
        ratio_D = (u_SND**2).sum((0, 1)) / np.einsum("sndd->d", inverse_SNDD)
        floor_D = 1e-9 * factors.prior_var_D * (config.distribution == "normal")  # elsewhere eta stays zero
        return replace(factors, noise_D=np.maximum(factors.noise_D * np.sqrt(ratio_D), floor_D))
    # B_k = sum_n pi_nk V_n^-1 / P_n, C_k = Sigma_k (sum_n pi_nk u_n u_n^T / P_n) Sigma_k, both with the prior's part
    share_MK = (pi_SNK / rows.particles_N[:, None] / len(pi_SNK)).reshape(-1, K)
    outer_MP = outer(u_SND, u_SND).reshape(-1, D * D)
    weight_KDD = (share_MK.T @ inverse_SNDD.reshape(-1, D * D)).reshape(K, D, D)
    weight_KDD += (2 * D + 3) * np.linalg.inv(factors.cov_KDD)
    scatter_KDD = factors.cov_KDD @ (share_MK.T @ outer_MP).reshape(K, D, D) @ factors.cov_KDD
    half_KDD = np.linalg.cholesky(weight_KDD)
    inner_KDD = half_KDD.swapaxes(1, 2) @ (scatter_KDD + np.diag(factors.scatter_D)) @ half_KDD
    values_KD, vectors_KDD = np.linalg.eigh(inner_KDD)
    root_KDD = np.linalg.solve(half_KDD.swapaxes(1, 2), vectors_KDD * np.maximum(values_KD, 1e-300)[:, None] ** 0.25)
    return replace(factors, cov_KDD=root_KDD @ root_KDD.swapaxes(1, 2))


def sweep(rows: Rows, factors: Factors, config: Config) -> tuple[tuple[Rows, Factors], float]:
    """One round over everything: the new state and its bound, which never falls."""
    rows = row_step(row_step(rows, factors, config), factors, config)
    factors = best_odds(rows, factors, config)
    bound = total_bound(rows, factors, config)
    for update in (best_means, best_spreads):
        old, new = (list(vars(state).values()) for state in (factors, update(rows, factors, config)))
        for share in STEPS:
            tried = Factors(*((1 - share) * a + share * b for a, b in zip(old, new)))
            value = total_bound(rows, tried, config)
            if value > bound:
                factors, bound = tried, value
                break
    return (rows, factors), bound


def begin(X: Array, particles_N: Array, shape_NK: Array, factors: Factors, config: Config) -> Rows:
    """Rows whose pi'_n is believed to be near `shape_NK`."""
    var_ND = np.tile(factors.prior_var_D * (config.distribution != "normal"), (len(X), 1))
    return Rows(X.copy(), particles_N, np.log(shape_NK), (shape_NK[:, :, None] + 1) * np.eye(shape_NK.shape[1]),
                LINKS[config.distribution][3](X), var_ND)


def start(X: Array, particles_N: Array, config: Config) -> tuple[Rows, Factors]:
    """k-means with fuzzy labels, largest cluster first."""
    K = config.n_factors
    theta_ND = LINKS[config.distribution][3](X)
    var_D = np.maximum(theta_ND.var(0), 1e-6 * theta_ND.var(0).max() + 1e-12)
    centre_KD = KMeans(K, n_init=1, random_state=config.random_state).fit(theta_ND).cluster_centers_
    label_NK = softmax(-np.log(((theta_ND[:, None] - centre_KD) ** 2 / var_D).sum(-1) + 1e-3), axis=1)
    order = np.argsort(-label_NK.sum(0), kind="stable")
    centre_KD, label_NK = centre_KD[order], label_NK[:, order]
    left_K = np.cumsum(label_NK.mean(0)[::-1])[::-1]
    odds_K = logit(np.clip(label_NK.mean(0) / left_K, 1e-6, 1 - 1e-6))
    scatter_D = config.local_scale * var_D * particles_N.mean()
    noise_D = var_D * config.noise * (config.distribution == "normal")
    factors = Factors(odds_K, centre_KD, np.tile(np.diag(scatter_D) * config.local, (K, 1, 1)), noise_D,
                      theta_ND.mean(0), config.mean_scale**2 * var_D, scatter_D)
    return begin(X, particles_N, config.local_concentration * label_NK + SMALLEST_SHAPE, factors, config), factors


@method(title="Nonparametric deconvolution model", paper="Nonparametric Deconvolution Models", year=2020,
        tags={"estimator", "em", "sklearn"})
class DeconvolutionModel(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Configured, BaseEstimator, config=Config):
    """Factors of averaged rows, and every row's own version of them; see the module's card.

    After `fit`: `weights_`, `local_factors_`, `factor_means_`, `factor_covariances_` (zeros without local factors),
    `global_weights_`, `noise_` (D,) (zeros unless normal), `elbo_` (nats, one an iteration, up to a constant),
    `n_factors_` (those with a mean weight above a hundredth). `n_particles` (N,) defaults to one in every row.
    """

    def fit(self, X: Any, y: Any = None, n_particles: Any = None) -> DeconvolutionModel:
        """Fit rows X (N, D); returns self."""
        config = self._config()
        X, particles_N = self._checked(X, n_particles, config, reset=True)
        run = ascend(lambda state: sweep(*state, config), start(X, particles_N, config), tol=config.tol * len(X),
                     max_iter=config.max_iter, ahead=True)
        (_, factors), self.elbo_ = run.state, run.bounds
        self._factors, self.n_iter_, self._n_features_out = factors, len(self.elbo_), config.n_factors
        self.factor_means_, self.factor_covariances_, self.noise_ = factors.mean_KD, factors.cov_KDD, factors.noise_D
        self.global_weights_ = (shapes(factors.odds_K, config) - SMALLEST_SHAPE) / config.local_concentration
        self.weights_, self.local_factors_ = self.deconvolve(X, n_particles)
        self.n_factors_ = int((self.weights_.mean(0) > 0.01).sum())
        return self

    def deconvolve(self, X: Any, n_particles: Any = None) -> tuple[Array, Array]:
        """Posterior means of weights (N, K) and of local factors (N, K, D) of rows X (N, D)."""
        rows, factors = self._infer(X, n_particles), self._factors
        pi_SNK, _ = weight_points(rows)
        u_ND = condition(pi_SNK, rows, factors)[0].mean(0) / rows.particles_N[:, None]
        return pi_SNK.mean(0), factors.mean_KD + np.einsum("kde,ne->nkd", factors.cov_KDD, u_ND)

    def transform(self, X: Any, n_particles: Any = None) -> Array:
        """Weights (N, K) of rows X (N, D)."""
        return self.deconvolve(X, n_particles)[0]

    def fit_transform(self, X: Any, y: Any = None, n_particles: Any = None) -> Array:
        """Fit, and the weights (N, K) of the same rows."""
        return self.fit(X, n_particles=n_particles).weights_

    def reconstruct(self, X: Any, n_particles: Any = None) -> Array:
        """Rows (N, D) as the model sees them: g of the posterior mean of theta."""
        rows, factors = self._infer(X, n_particles), self._factors
        u_ND = condition(weight_points(rows)[0], rows, factors)[0].mean(0)
        return LINKS[self._config().distribution][2](rows.site_ND - (factors.noise_D + rows.site_var_ND) * u_ND)

    def score(self, X: Any, y: Any = None, n_particles: Any = None) -> float:
        """Mean lower bound on the log density of rows X (N, D), in nats a row."""
        return float(row_bounds(self._infer(X, n_particles), self._factors, self._config()).mean())

    def _infer(self, X: Any, n_particles: Any) -> Rows:
        check_is_fitted(self)
        config = self._config()
        X, particles_N = self._checked(X, n_particles, config, reset=False)
        rows = begin(X, particles_N, np.tile(shapes(self._factors.odds_K, config), (len(X), 1)), self._factors, config)
        for _ in range(100):
            before, rows = rows, row_step(rows, self._factors, config)
            if np.array_equal(before.log_mean_NK, rows.log_mean_NK) and np.allclose(before.site_ND, rows.site_ND):
                break
        return rows

    def _checked(self, X: Any, n_particles: Any, config: Config, reset: bool) -> tuple[Array, Array]:
        X = validate_data(self, X, dtype=np.float64, reset=reset)
        low, high, *_ = LINKS[config.distribution]
        if X.min() < low or X.max() > high:
            raise ValueError(f"X goes from {X.min()} to {X.max()}; {config.distribution} expected {low} to {high}")
        particles_N = np.ones(len(X)) if n_particles is None else np.array(n_particles, dtype=np.float64)
        if particles_N.shape != (len(X),) or not (particles_N > 0).all():
            raise ValueError(f"n_particles has shape {particles_N.shape}; expected ({len(X)},), all above 0")
        return X, particles_N


def example(generator: torch.Generator) -> dict[str, Any]:
    """Forty rows that mix two factors."""
    x = torch.randn(40, 3, generator=generator) + 20 * torch.rand(40, 1, generator=generator)
    return {"estimator": DeconvolutionModel(n_factors=2, max_iter=10, random_state=0), "X": x.numpy()}
