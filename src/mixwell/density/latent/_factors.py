"""What deconvolution believes of factors and of rows, and the bound that follows from it.

N rows, D columns, K factors, S = 2 K points that stand for q(log pi'), Q quadrature nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from scipy.special import betaln, expit, gammaln, log_expit, logit, softmax, xlogy

from mixwell.density._gaussian import LOG_2PI, Array, log_normal

Config = Any  # of `deconvolution`, which builds on this module


class Link(NamedTuple):
    """Between what an observation lies, and how its mean follows from theta."""

    low: float
    high: float
    mean: Callable[[Array], Array]  # g
    inverse: Callable[[Array], Array]  # finite for counts of zero


def _softplus(theta: Array) -> Array:
    return np.logaddexp(0, theta)


def _inverse_softplus(mean: Array) -> Array:
    lost = np.expm1(-np.maximum(mean, 0.5))
    return mean + np.log(-lost)


LINKS = {
    "normal": Link(-math.inf, math.inf, np.array, np.array),
    "poisson": Link(0.0, math.inf, _softplus, _inverse_softplus),
    "beta": Link(1e-300, 1 - 1e-16, expit, logit),
}
NODES_Q, NODE_MASS_Q = np.array(np.polynomial.hermite_e.hermegauss(16)) / [[1.0], [math.sqrt(2 * math.pi)]]
SMALLEST_SHAPE = 1e-3  # added to alpha beta_k, so that empty factors' gammas stay finite


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
        values = [getattr(self, field.name) for field in fields(self)]
        return Rows(*(value[index] for value in values))

    def put(self, index: Array, other: Rows) -> None:
        """Some of the rows become those of `other`, in place."""
        for field in fields(self):
            value = getattr(self, field.name)
            value[index] = getattr(other, field.name)[index]


def log_at_nodes(y: Array, mean_SND: Array, var_SND: Array, config: Config) -> Array:
    """log f(y | g(theta)) of Poisson and beta observations at theta's quadrature nodes (Q, S, N, D), in nats."""
    node_Q111 = NODES_Q[:, None, None, None]
    theta = mean_SND + np.sqrt(var_SND) * node_Q111
    mean = LINKS[config.distribution].mean(theta)
    if config.distribution == "poisson":
        log_rates = xlogy(y, np.maximum(mean, 1e-9))
        return log_rates - mean - gammaln(y + 1)
    total = 1 / config.noise - 1
    mean = np.clip(mean, 1e-9, 1 - 1e-9)
    a = total * mean
    b = total * (1 - mean)
    above = (a - 1) * np.log(y)
    below = (b - 1) * np.log1p(-y)
    return above + below - betaln(a, b)


def shapes(odds_K: Array, config: Config) -> Array:
    """alpha beta_k (K,)."""
    free_K = odds_K[:-1]
    broken_K = np.append(expit(free_K), 1.0)
    left_K = np.cumprod(expit(-free_K))
    beta_K = broken_K * np.append(1.0, left_K)
    return config.local_concentration * beta_K + SMALLEST_SHAPE


def weight_points(rows: Rows) -> tuple[Array, Array]:
    """pi_n at the points that stand for q, all with the same mass (2 K, N, K), and E pi'_nk (N, K)."""
    mean_NK = rows.log_mean_NK
    K = mean_NK.shape[1]
    cov_NKK = np.linalg.inv(rows.precision_NKK)
    root_NKK = np.linalg.cholesky(cov_NKK)
    columns_KNK = np.moveaxis(root_NKK, 2, 0)
    offset_KNK = math.sqrt(K) * columns_KNK
    offset_SNK = np.concatenate([offset_KNK, -offset_KNK])
    var_NK = np.einsum("nkk->nk", cov_NKK)
    log_gammas_NK = mean_NK + 0.5 * var_NK
    gammas_NK = np.exp(np.minimum(log_gammas_NK, 50))
    pi_SNK = softmax(mean_NK + offset_SNK, axis=-1)
    return pi_SNK, gammas_NK


def condition(pi_SNK: Array, rows: Rows, factors: Factors) -> tuple[Array, Array, Array]:
    """u_n (S, N, D), V_n^-1 (S, N, D, D) and log N(t_n; pi_n mu, V_n) (S, N) in nats."""
    K, D = factors.mean_KD.shape
    S, N, _ = pi_SNK.shape
    share_SNK = pi_SNK / rows.particles_N[:, None]
    V_SNP = share_SNK @ factors.cov_KDD.reshape(K, -1)
    V_SNDD = V_SNP.reshape(S, N, D, D)
    diagonal = np.arange(D)
    V_SNDD[..., diagonal, diagonal] += factors.noise_D + rows.site_var_ND
    inverse_SNDD = np.linalg.inv(V_SNDD)
    r_SND = rows.site_ND - pi_SNK @ factors.mean_KD
    u_SND = (inverse_SNDD @ r_SND[..., None])[..., 0]
    square_SN = (r_SND * u_SND).sum(-1)
    _, log_det_SN = np.linalg.slogdet(V_SNDD)
    return u_SND, inverse_SNDD, log_normal(square_SN, 0.5 * log_det_SN, D)


def theta_posterior(u_SND: Array, inverse_SNDD: Array, rows: Rows, factors: Factors) -> tuple[Array, Array]:
    """Means and variances of theta_n under q, both (S, N, D)."""
    noise_ND = factors.noise_D + rows.site_var_ND
    known_SND = np.einsum("sndd->snd", inverse_SNDD)
    var_SND = noise_ND - noise_ND**2 * known_SND
    least_ND = 1e-8 * noise_ND
    mean_SND = rows.site_ND - noise_ND * u_SND
    return mean_SND, np.maximum(var_SND, least_ND)


def row_bounds(rows: Rows, factors: Factors, config: Config) -> Array:
    """Every row's part of the bound (N,), in nats."""
    pi_SNK, gammas_NK = weight_points(rows)
    u_SND, inverse_SNDD, log_SN = condition(pi_SNK, rows, factors)
    if config.distribution != "normal":
        mean_SND, var_SND = theta_posterior(u_SND, inverse_SNDD, rows, factors)
        gain_SND = _likelihood_over_site(mean_SND, var_SND, rows, config)
        log_SN = log_SN + gain_SND.sum(-1)
    shape_K = shapes(factors.odds_K, config)
    prior_NK = shape_K * rows.log_mean_NK - gammas_NK - gammaln(shape_K)
    _, log_precision_N = np.linalg.slogdet(rows.precision_NKK)
    standard = len(shape_K) * (LOG_2PI + 1)
    entropy_N = 0.5 * (standard - log_precision_N)
    return log_SN.mean(0) + prior_NK.sum(1) + entropy_N


def _likelihood_over_site(mean_SND: Array, var_SND: Array, rows: Rows, config: Config) -> Array:
    """E log f of the observations, less that of the sites which stood in for them (S, N, D)."""
    log_QSND = log_at_nodes(rows.y_ND, mean_SND, var_SND, config)
    gain_SND = np.tensordot(NODE_MASS_Q, log_QSND, 1)
    gap_SND = rows.site_ND - mean_SND
    square_SND = (gap_SND**2 + var_SND) / rows.site_var_ND
    log_scale_ND = 0.5 * np.log(rows.site_var_ND)
    site_SND = log_normal(square_SND, log_scale_ND)
    return gain_SND - site_SND


def log_prior_odds(odds_K: Array, config: Config) -> Array:
    """Log prior of every stick's log odds (K,), up to a constant."""
    log_rest_K = log_expit(-odds_K)
    return log_expit(odds_K) + config.global_concentration * log_rest_K


def total_bound(rows: Rows, factors: Factors, config: Config) -> float:
    """The bound in nats: rows' parts and, up to constants, the log priors of what is a point."""
    value = log_prior_odds(factors.odds_K, config).sum()
    value += row_bounds(rows, factors, config).sum()
    gap_KD = factors.mean_KD - factors.prior_mean_D
    square_KD = gap_KD**2 / factors.prior_var_D
    value -= 0.5 * square_KD.sum()
    if config.local:
        D = len(factors.noise_D)
        inverse_KDD = np.linalg.inv(factors.cov_KDD)
        spread_K = np.einsum("kdd,d->k", inverse_KDD, factors.scatter_D)
        _, log_det_K = np.linalg.slogdet(factors.cov_KDD)
        count = 2 * D + 3
        cost_K = spread_K + count * log_det_K
        value -= 0.5 * cost_K.sum()
    return float(value)
