"""Censored Gaussian mixture: one-dimensional mixtures seen only inside a set, by moments or by EM.

**Equation:** x ~ sum_i w_i N(mu_i, sigma^2) is observed only in S. As N(x; mu, 1) = phi(x) sum_j He_j(x) mu^j / j!,
functions f_a = sum_b beta_ab He_b with integral_S f_a He_j phi / j! = [a = j] for j < L have E[f_a(x) 1_S(x)] =
sum_i w_i mu_i^a up to terms mu^L / L!. The moments so found are projected on those that a distribution can have, and
K-point quadrature reads weights and means from them. Without the number of censored rows all is divided by the zeroth.
EM: responsibilities of observed rows, and of unseen ones in proportion w_k P_k(outside), mean E_k[x | outside].

**Shapes:** x (N,) observed values; `weights_` (K,), `means_` (K,), sorted.

**Reference:** Tai and Aragam (2023), Learning Mixtures of Gaussians with Censored Data, arXiv:2305.04127; Wu and Yang
(2020) for the denoised method of moments.

**Differs:** written from memory of the paper. Values are shifted by the observed mean, so that the series is short. The
projection is a non-negative least squares over a grid of means instead of a semidefinite programme.

**Fails when:** S has little mass under a component; `n_terms` is large for the sample (variance) or small for the
spread of the means (bias). Without the number of censored rows EM is slow and its likelihood flat.

**Cost:** O(N L) for the moments; O(N K) an EM step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.polynomial import hermite_e
from scipy.integrate import quad_vec
from scipy.optimize import nnls
from scipy.special import logsumexp, ndtr, softmax
from sklearn.utils.validation import check_is_fitted

from mixwell.core.method import method
from mixwell.density._ascent import ascend
from mixwell.density._gaussian import Array, log_normal, log_positive
from mixwell.density._options import Configured

Intervals = Sequence[tuple[float, float]]
FAR = 12.0  # standard deviations beyond which a normal has no mass


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the censored mixture; `ValueError` for one out of range."""

    n_components: int = 2  # K
    sigma: float = 1.0  # known standard deviation of every component
    intervals: Intervals = ((-math.inf, math.inf),)  # S: disjoint, in order
    estimator: Literal["moments", "em"] = "em"
    n_terms: int = 8  # L: moments: terms of the series, at least 2 K
    reach: float = 4.0  # moments: largest |mean - observed mean| / sigma
    tol: float = 1e-9  # EM: stop when a step gains less, in nats a row
    max_iter: int = 2000  # EM

    def __post_init__(self) -> None:
        positive = self.sigma > 0 and self.reach > 0
        if self.n_components < 1 or not positive or self.max_iter < 1 or self.tol < 0:
            raise ValueError(f"n_components is {self.n_components}, sigma {self.sigma}, reach {self.reach}, max_iter "
                             f"{self.max_iter}, tol {self.tol}; expected at least 1, above 0, above 0, at least 1, "
                             "at least 0")
        if self.estimator not in ("moments", "em"):
            raise ValueError(f"estimator is {self.estimator!r}; expected 'moments' or 'em'")
        needed = 2 * self.n_components
        if self.estimator == "moments" and self.n_terms < needed:
            raise ValueError(f"n_terms is {self.n_terms}; expected at least {needed} for {self.n_components} "
                             "components")
        edges = [edge for interval in self.intervals for edge in interval]
        if not edges or any(a >= b for a, b in pairwise(edges)):
            raise ValueError(f"intervals are {self.intervals}; expected disjoint (low, high) in rising order")


def moment_functions(intervals: Intervals, terms: int) -> Array:
    """beta (L, L): rows are the Hermite coefficients of functions whose mean over S is a power of mu (sigma = 1)."""
    factorials = np.array([math.factorial(j) for j in range(terms)], dtype=float)

    def products(x: float) -> Array:
        (values,) = hermite_e.hermevander(np.array([x]), terms - 1)
        density = np.exp(log_normal(np.square(x), 0.0))
        return np.outer(values, values) * density

    gram_LL = np.zeros((terms, terms))
    for low, high in intervals:
        if low < FAR and high > -FAR:
            integral_LL, *_ = quad_vec(products, max(low, -FAR), min(high, FAR), epsrel=1e-10)
            gram_LL = gram_LL + integral_LL
    root_L = np.sqrt(factorials)
    scale_LL = np.outer(root_L, root_L)  # orthonormal polynomials, whose Gram matrix is better conditioned
    inverse_LL = np.linalg.inv(gram_LL / scale_LL)
    return np.diag(factorials) @ inverse_LL / scale_LL


def quadrature(moments: Array, points: int, reach: float) -> tuple[Array, Array]:
    """Weights and means (K,) of K atoms in [-reach, reach] near `moments` m_1..m_{2K-1}."""
    grid_G = np.linspace(-reach, reach, 801)
    order_M = np.arange(1, 2 * points)
    powers_MG = grid_G ** order_M[:, None]
    sizes_M = reach**order_M
    sum_to_one_G = np.full_like(grid_G, 1e3)
    rows = np.vstack([powers_MG / sizes_M[:, None], sum_to_one_G])
    target = np.append(moments / sizes_M, 1e3)
    share_G, _ = nnls(rows, target)
    share_G /= share_G.sum()
    jacobi = jacobi_matrix(grid_G, share_G, points, 1e-8 * reach)
    means, vectors = np.linalg.eigh(jacobi)
    weights = vectors[0] ** 2
    spare = points - len(means)  # fewer atoms explain the moments: the rest weigh nothing
    weights_K = np.append(weights, np.zeros(spare))
    means_K = np.append(means, np.full(spare, means[-1]))
    return weights_K, means_K


def jacobi_matrix(grid_G: Array, share_G: Array, points: int, smallest: float) -> Array:
    """Lanczos: the Jacobi matrix (K, K) of a distribution on a grid, smaller where a norm falls below `smallest`."""
    basis, diagonal, beside = [np.sqrt(share_G)], [], []
    for k in range(points):
        ahead_G = grid_G * basis[-1]
        diagonal.append(ahead_G @ basis[-1])
        for vector_G in basis:
            ahead_G = ahead_G - (ahead_G @ vector_G) * vector_G
        norm = float(np.linalg.norm(ahead_G))
        if norm < smallest or k == points - 1:
            break
        beside.append(norm)
        basis.append(ahead_G / norm)
    return np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)


def outside(means_K: Array, sigma: float, intervals: Intervals) -> tuple[Array, Array]:
    """P_k(outside S) and the integral of x there, for every component (K,)."""
    mass_K = np.ones_like(means_K)
    first_K = means_K.copy()
    for low, high in intervals:
        a_K = (low - means_K) / sigma
        b_K = (high - means_K) / sigma
        inside_K = ndtr(b_K) - ndtr(a_K)
        height_a_K = np.exp(log_normal(a_K**2, 0.0))
        height_b_K = np.exp(log_normal(b_K**2, 0.0))
        edge_K = height_a_K - height_b_K
        mass_K = mass_K - inside_K
        first_K = first_K - means_K * inside_K - sigma * edge_K
    return np.maximum(mass_K, 0.0), first_K


def em_step(x_N: Array, unseen: float | None, weights_K: Array, means_K: Array,
            config: Config) -> tuple[Array, Array, float]:
    """New weights and means, and the log-likelihood of the old ones in nats (of x given S where `unseen` is None)."""
    z_NK = (x_N[:, None] - means_K) / config.sigma
    log_NK = np.log(weights_K) + log_normal(z_NK**2, math.log(config.sigma))
    resp_NK = softmax(log_NK, axis=1)
    mass_K, first_K = outside(means_K, config.sigma, config.intervals)
    gone = float(weights_K @ mass_K)
    value = float(logsumexp(log_NK, axis=1).sum())
    if unseen is None:
        value -= len(x_N) * math.log1p(-gone)
        unseen = len(x_N) * gone / (1 - gone)
    elif unseen > 0:
        value += unseen * math.log(gone)
    per_mass = unseen / gone if gone > 0 else 0.0
    unseen_count_K = per_mass * weights_K * mass_K
    unseen_sum_K = per_mass * weights_K * first_K
    count_K = resp_NK.sum(0) + unseen_count_K
    sum_K = x_N @ resp_NK + unseen_sum_K
    new_weights_K = count_K / count_K.sum()
    new_means_K = sum_K / np.maximum(count_K, 1e-300)
    return new_weights_K, new_means_K, value


@method(
    title="Censored Gaussian mixture",
    paper="Learning Mixtures of Gaussians with Censored Data",
    year=2023,
    tags={"estimator", "em", "density", "relabel"},
)
class CensoredGaussianMixture(Configured, config=Config):
    """One-dimensional Gaussian mixture seen inside known intervals; see the module's card and `Config`."""

    def fit(self, x: Any, n_censored: int | None = None) -> CensoredGaussianMixture:
        """Fit to observed values x (N,); `n_censored` counts rows that fell outside, None where that is unknown.

        `ValueError` for values outside the intervals, fewer than two of them, a negative count or options out of range.
        """
        config = self._config()
        x_N = np.asarray(x, dtype=np.float64).reshape(-1)
        _check(x_N, n_censored, config.intervals)
        if config.estimator == "moments":
            weights_K, means_K = self._by_moments(x_N, n_censored, config)
        else:
            weights_K, means_K = self._by_em(x_N, n_censored, config)
        order = np.argsort(means_K)
        self.weights_ = weights_K[order]
        self.means_ = means_K[order]
        return self

    def _by_moments(self, x_N: Array, n_censored: int | None, config: Config) -> tuple[Array, Array]:
        centre = float(x_N.mean())
        z_N = (x_N - centre) / config.sigma
        intervals = np.asarray(config.intervals)
        shifted = (intervals - centre) / config.sigma
        beta_LL = moment_functions(shifted.tolist(), config.n_terms)
        total = len(x_N) + (n_censored or 0)
        hermite_NL = hermite_e.hermevander(z_N, config.n_terms - 1)
        mean_L = hermite_NL.sum(0) / total
        self.moments_ = beta_LL[: 2 * config.n_components] @ mean_L
        if n_censored is None:
            self.moments_ = self.moments_ / self.moments_[0]
        weights_K, means_K = quadrature(self.moments_[1:], config.n_components, config.reach)
        return weights_K, centre + config.sigma * means_K

    def _by_em(self, x_N: Array, n_censored: int | None, config: Config) -> tuple[Array, Array]:
        K = config.n_components
        levels_K = (np.arange(K) + 0.5) / K
        first = (
            np.full(K, 1 / K),
            np.quantile(x_N, levels_K),
        )

        def step(params: tuple[Array, Array]) -> tuple[tuple[Array, Array], float]:
            weights_K, means_K, value = em_step(x_N, n_censored, *params, config)
            return (weights_K, means_K), value

        least_gain = config.tol * len(x_N)
        run = ascend(step, first, tol=least_gain, max_iter=config.max_iter)
        self.log_likelihoods_ = run.bounds
        return run.state

    def score_samples(self, x: Any) -> Array:
        """Log density (N,) of the mixture before censoring, in nats; an error before `fit`."""
        check_is_fitted(self, "means_")
        config = self._config()
        x_N = np.asarray(x, dtype=np.float64)
        x_N1 = x_N.reshape(-1, 1)
        z_NK = (x_N1 - self.means_) / config.sigma
        log_NK = log_normal(z_NK**2, math.log(config.sigma))
        log_joint_NK = log_positive(self.weights_) + log_NK
        return logsumexp(log_joint_NK, axis=1)

    def observed_share(self) -> float:
        """The probability that a value falls inside the intervals; an error before `fit`."""
        check_is_fitted(self, "means_")
        config = self._config()
        outside_K, _ = outside(self.means_, config.sigma, config.intervals)
        lost = self.weights_ @ outside_K
        return 1 - float(lost)


def _check(x_N: Array, n_censored: int | None, intervals: Intervals) -> None:
    inside_N = np.zeros(len(x_N), dtype=bool)
    for low, high in intervals:
        above_N, below_N = x_N >= low, x_N <= high
        inside_N |= above_N & below_N
    wrong = x_N[~inside_N]
    if len(wrong):
        raise ValueError(f"x holds {wrong[0]:g}, outside the intervals; drop it and count it in n_censored")
    if len(x_N) < 2:
        raise ValueError(f"x has {len(x_N)} values; expected two or more")
    if n_censored is not None and n_censored < 0:
        raise ValueError(f"n_censored is {n_censored}; expected 0 or more, or None")


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups of which only what is above zero is seen."""
    noise_N = torch.randn(400, generator=generator, dtype=torch.float64)
    x_N = noise_N + 3.0 * (torch.arange(400) % 2)
    seen = x_N[x_N > 0]
    estimator = CensoredGaussianMixture(intervals=((0.0, math.inf),))
    return {"estimator": estimator, "x": seen.numpy(), "n_censored": 400 - len(seen)}
