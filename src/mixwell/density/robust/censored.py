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

Intervals = tuple[tuple[float, float], ...]
FAR = 12.0  # standard deviations beyond which a normal has no mass


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the censored mixture."""

    n_components: int = 2  # K
    sigma: float = 1.0  # known standard deviation of every component
    intervals: Intervals = ((-math.inf, math.inf),)  # S: disjoint, in order
    estimator: Literal["moments", "em"] = "em"
    n_terms: int = 8  # L: moments: terms of the series, at least 2 K
    reach: float = 4.0  # moments: largest |mean - observed mean| / sigma
    tol: float = 1e-9  # EM: stop when a step gains less, in nats a row
    max_iter: int = 2000  # EM

    def __post_init__(self) -> None:
        if self.n_components < 1 or self.sigma <= 0 or self.reach <= 0 or self.max_iter < 1 or self.tol < 0:
            raise ValueError(f"n_components is {self.n_components}, sigma {self.sigma}, reach {self.reach}, max_iter "
                             f"{self.max_iter}, tol {self.tol}; expected at least 1, above 0, above 0, at least 1, "
                             "at least 0")
        if self.estimator not in ("moments", "em"):
            raise ValueError(f"estimator is {self.estimator!r}; expected 'moments' or 'em'")
        if self.estimator == "moments" and self.n_terms < 2 * self.n_components:
            raise ValueError(f"n_terms is {self.n_terms}; expected at least {2 * self.n_components} for "
                             f"{self.n_components} components")
        edges = [edge for interval in self.intervals for edge in interval]
        if not edges or any(a >= b for a, b in pairwise(edges)):
            raise ValueError(f"intervals are {self.intervals}; expected disjoint (low, high) in rising order")


def moment_functions(intervals: Intervals, terms: int) -> Array:
    """beta (L, L): rows are the Hermite coefficients of functions whose mean over S is a power of mu (sigma = 1)."""
    factorials = np.array([math.factorial(j) for j in range(terms)], dtype=float)

    def products(x: float) -> Array:
        values = hermite_e.hermevander(np.array([x]), terms - 1)[0]
        return np.outer(values, values) * np.exp(log_normal(np.square(x), 0.0))

    inside = [(max(low, -FAR), min(high, FAR)) for low, high in intervals if low < FAR and high > -FAR]
    gram_LL = sum(quad_vec(products, low, high, epsrel=1e-10)[0] for low, high in inside)
    scale_L = np.sqrt(factorials)
    return np.diag(factorials) @ np.linalg.inv(gram_LL / np.outer(scale_L, scale_L)) / np.outer(scale_L, scale_L)


def quadrature(moments: Array, points: int, reach: float) -> tuple[Array, Array]:
    """Weights and means (K,) of K atoms in [-reach, reach] near `moments` m_1..m_{2K-1}."""
    grid_G = np.linspace(-reach, reach, 801)
    powers_MG = grid_G ** np.arange(1, 2 * points)[:, None]
    sizes_M = reach ** np.arange(1, 2 * points)
    rows = np.vstack([powers_MG / sizes_M[:, None], np.full_like(grid_G, 1e3)])
    share_G, _ = nnls(rows, np.append(moments / sizes_M, 1e3))
    share_G /= share_G.sum()
    basis, diagonal, beside = [np.sqrt(share_G)], [], []
    for k in range(points):  # Lanczos: the Jacobi matrix of the projected distribution
        ahead = grid_G * basis[-1]
        diagonal.append(ahead @ basis[-1])
        for vector in basis:
            ahead = ahead - (ahead @ vector) * vector
        norm = float(np.linalg.norm(ahead))
        if norm < 1e-8 * reach or k == points - 1:
            break
        beside.append(norm)
        basis.append(ahead / norm)
    jacobi = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    means, vectors = np.linalg.eigh(jacobi)
    spare = points - len(means)  # fewer atoms explain the moments: the rest weigh nothing
    return np.append(vectors[0] ** 2, np.zeros(spare)), np.append(means, np.full(spare, means[-1]))


def outside(means_K: Array, sigma: float, intervals: Intervals) -> tuple[Array, Array]:
    """P_k(outside S) and the integral of x there, for every component (K,)."""
    mass_K, first_K = np.ones_like(means_K), means_K.copy()
    for low, high in intervals:
        a, b = (low - means_K) / sigma, (high - means_K) / sigma
        inside_K = ndtr(b) - ndtr(a)
        edge_K = np.exp(log_normal(a**2, 0.0)) - np.exp(log_normal(b**2, 0.0))
        mass_K = mass_K - inside_K
        first_K = first_K - means_K * inside_K - sigma * edge_K
    return np.maximum(mass_K, 0.0), first_K


def em_step(x_N: Array, unseen: float | None, weights_K: Array, means_K: Array,
            config: Config) -> tuple[Array, Array, float]:
    """New weights and means, and the log-likelihood of the old ones in nats (of x given S where `unseen` is None)."""
    log_NK = np.log(weights_K) + log_normal(((x_N[:, None] - means_K) / config.sigma) ** 2, math.log(config.sigma))
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
    count_K = resp_NK.sum(0) + per_mass * weights_K * mass_K
    sum_K = x_N @ resp_NK + per_mass * weights_K * first_K
    return count_K / count_K.sum(), sum_K / np.maximum(count_K, 1e-300), value


@method(
    title="Censored Gaussian mixture",
    paper="Learning Mixtures of Gaussians with Censored Data",
    year=2023,
    tags={"estimator", "em", "density", "relabel"},
)
class CensoredGaussianMixture(Configured, config=Config):
    """One-dimensional Gaussian mixture seen inside known intervals; see the module's card and `Config`."""

    def fit(self, x: Any, n_censored: int | None = None) -> CensoredGaussianMixture:
        """Fit to observed values x (N,); `n_censored` counts rows that fell outside, None where that is unknown."""
        config = self._config()
        x_N = np.asarray(x, dtype=np.float64).reshape(-1)
        inside_N = np.any([(x_N >= low) & (x_N <= high) for low, high in config.intervals], axis=0)
        if len(x_N) < 2 or not inside_N.all():
            wrong = x_N[~inside_N]
            raise ValueError(f"x holds {wrong[0]:g}, outside the intervals; drop it and count it in n_censored"
                             if len(wrong) else f"x has {len(x_N)} values; expected two or more")
        if n_censored is not None and n_censored < 0:
            raise ValueError(f"n_censored is {n_censored}; expected 0 or more, or None")
        if config.estimator == "moments":
            weights_K, means_K = self._by_moments(x_N, n_censored, config)
        else:
            weights_K, means_K = self._by_em(x_N, n_censored, config)
        order = np.argsort(means_K)
        self.weights_, self.means_ = weights_K[order], means_K[order]
        return self

    def _by_moments(self, x_N: Array, n_censored: int | None, config: Config) -> tuple[Array, Array]:
        centre = float(x_N.mean())
        z_N = (x_N - centre) / config.sigma
        shifted = tuple(((low - centre) / config.sigma, (high - centre) / config.sigma)
                        for low, high in config.intervals)
        beta_LL = moment_functions(shifted, config.n_terms)
        total = len(x_N) + (n_censored or 0)
        self.moments_ = beta_LL[: 2 * config.n_components] @ (
            hermite_e.hermevander(z_N, config.n_terms - 1).sum(0) / total)
        if n_censored is None:
            self.moments_ = self.moments_ / self.moments_[0]
        weights_K, means_K = quadrature(self.moments_[1:], config.n_components, config.reach)
        return weights_K, centre + config.sigma * means_K

    def _by_em(self, x_N: Array, n_censored: int | None, config: Config) -> tuple[Array, Array]:
        K = config.n_components
        weights_K, means_K = np.full(K, 1 / K), np.quantile(x_N, (np.arange(K) + 0.5) / K)

        def step(params: tuple[Array, Array]) -> tuple[tuple[Array, Array], float]:
            *new, value = em_step(x_N, n_censored, *params, config)
            return (new[0], new[1]), value

        run = ascend(step, (weights_K, means_K), tol=config.tol * len(x_N), max_iter=config.max_iter)
        self.log_likelihoods_ = run.bounds
        return run.state

    def score_samples(self, x: Any) -> Array:
        """Log density (N,) of the mixture before censoring, in nats."""
        check_is_fitted(self, "means_")
        config = self._config()
        z_NK = (np.asarray(x, dtype=np.float64).reshape(-1, 1) - self.means_) / config.sigma
        return logsumexp(log_positive(self.weights_) + log_normal(z_NK**2, math.log(config.sigma)), axis=1)

    def observed_share(self) -> float:
        """The probability that a value falls inside the intervals."""
        check_is_fitted(self, "means_")
        config = self._config()
        return 1 - float(self.weights_ @ outside(self.means_, config.sigma, config.intervals)[0])


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups of which only what is above zero is seen."""
    x_N = torch.randn(400, generator=generator, dtype=torch.float64) + 3.0 * (torch.arange(400) % 2)
    seen = x_N[x_N > 0]
    return {"estimator": CensoredGaussianMixture(intervals=((0.0, math.inf),)), "x": seen.numpy(),
            "n_censored": 400 - len(seen)}
