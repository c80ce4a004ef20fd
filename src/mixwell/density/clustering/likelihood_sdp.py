"""Likelihood-adjusted semidefinite program: Gaussian clusters by memberships alone, without centres.

**Equation:** cluster k is a matrix Z_k (1/|G_k| within G_k, else 0). The profile likelihood is linear in it: minimise
sum_k <D_k / 2 + log|S_k| J, Z_k> / 2 with D_k,ij = (x_i - x_j)' S_k^-1 (x_i - x_j) and J all ones, over Z_k positive
semidefinite and not negative, trace Z_k = 1, sum_k Z_k 1 = 1; in turn S_k = sum_ij Z_k,ij (x_i - x_j)(x_i - x_j)' /
(2 n_k) with n_k = <J, Z_k>. Low rank: Z_k = U_k U_k', U_k (N, R) not negative, by an augmented Lagrangian over the two
constraints. Start: the same program with one matrix of trace K and S = I (k-means' relaxation).

**Shapes:** X (N, D); `labels_` (N,), `memberships_` (N, K) with rows Z_k 1, `covariances_` (K, D, D).

**Reference:** Zhuang, Chen, Yang (2023), Likelihood Adjusted Semidefinite Programs for Clustering Heterogeneous Data,
ICML, arXiv:2209.15097, equations 7 to 10 and algorithm 1.

**Differs:** non-negative low-rank factors instead of a semidefinite solver (the same authors' later route for k-means),
so memory is O(N K R); the objective is no longer convex, and is solved from the rounded start. The signal is not split
off first in high dimensions. Written from memory of the paper.

**Fails when:** a cluster has fewer rows than D needs for a covariance (raise `reg_covar`).

**Cost:** O(N K R D) a gradient, a few thousand gradients a program, `max_iter` programs at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from mixwell.core.method import method
from mixwell.density._gaussian import Array, log_diagonal, whiten
from mixwell.density._options import Configured


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the likelihood-adjusted program; `ValueError` for one out of range."""

    n_clusters: int = 2  # K
    rank: int = 2  # R, of every cluster's factor; 1 is a membership vector, and meets more poor optima
    max_iter: int = 10  # of program and covariances in turn; 0 keeps the relaxation of k-means
    multiplier_steps: int = 12  # of the augmented Lagrangian
    solver_steps: int = 60  # of the inner optimiser, at most
    reg_covar: float = 1e-3  # added to covariances, as a share of the mean column variance
    random_state: Any = None  # of the factors' start

    def __post_init__(self) -> None:
        for name in ("n_clusters", "rank", "multiplier_steps", "solver_steps"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        if self.max_iter < 0:
            raise ValueError(f"max_iter is {self.max_iter}; expected 0 or more")
        if self.reg_covar <= 0:
            raise ValueError(f"reg_covar is {self.reg_covar}; expected a number above 0")


def objective(u_KNR: Array, white_KND: Array, log_det_K: Array) -> tuple[float, Array]:
    """sum_k <D_k / 2 + log|S_k| J, U_k U_k'> / 2 and its gradient; rows of `white_KND` are S_k^-1/2 x."""
    square_KN = (white_KND**2).sum(2)
    sums_KR = u_KNR.sum(1)
    mixed_KDR = white_KND.transpose(0, 2, 1) @ u_KNR
    squares_KR = np.einsum("kn,knr->kr", square_KN, u_KNR)
    # (D U)_i = |x_i|^2 sum_j U_j + sum_j |x_j|^2 U_j - 2 x_i . sum_j x_j U_j
    own_KNR = square_KN[:, :, None] * sums_KR[:, None]
    cross_KNR = 2 * white_KND @ mixed_KDR
    du_KNR = own_KNR - cross_KNR + squares_KR[:, None]
    volume_KR = log_det_K[:, None] * sums_KR
    cu_KNR = du_KNR / 2 + volume_KR[:, None]
    value = 0.5 * float((cu_KNR * u_KNR).sum())
    return value, cu_KNR


class Program:
    """The augmented Lagrangian of one program, whose prices and penalty rise where its constraints are missed."""

    def __init__(self, white_KND: Array, log_det_K: Array, trace: float, start_KNR: Array) -> None:
        self.white_KND = white_KND
        self.log_det_K = log_det_K
        self.trace = trace
        self.shape = K, N, _ = start_KNR.shape
        value, _ = objective(start_KNR, white_KND, log_det_K)
        self.scale = max(abs(value), 1e-12)  # makes the program of order one
        self.price_N = np.zeros(N)
        self.price_K = np.zeros(K)
        self.penalty = 10.0 / N

    def misses(self, u_KNR: Array) -> tuple[Array, Array]:
        """By how much the rows' sums (N,) and the traces (K,) are off."""
        row_N = np.einsum("knr,kr->n", u_KNR, u_KNR.sum(1))
        trace_K = (u_KNR**2).sum((1, 2))
        return row_N - 1, trace_K - self.trace

    def prices(self, miss_N: Array, miss_K: Array) -> tuple[Array, Array]:
        """Prices (N,) and (K,) after a step along the misses."""
        N = len(miss_N)
        price_N = self.price_N + self.penalty * miss_N
        price_K = self.price_K + self.penalty * N * miss_K
        return price_N, price_K

    def __call__(self, flat: Array) -> tuple[float, Array]:
        """The Lagrangian and its gradient at flattened factors."""
        u_KNR = flat.reshape(self.shape)
        value, slope_KNR = objective(u_KNR, self.white_KND, self.log_det_K)
        miss_N, miss_K = self.misses(u_KNR)
        square = miss_N @ miss_N + len(miss_N) * miss_K @ miss_K
        priced = value / self.scale + self.price_N @ miss_N + self.price_K @ miss_K
        push_N, push_K = self.prices(miss_N, miss_K)
        by_sum_KNR = push_N[:, None] * u_KNR.sum(1)[:, None]
        pushed_KR = np.einsum("n,knr->kr", push_N, u_KNR)
        by_trace_KNR = 2 * push_K[:, None, None] * u_KNR
        slope_KNR = slope_KNR / self.scale + by_sum_KNR + pushed_KR[:, None] + by_trace_KNR
        return priced + 0.5 * self.penalty * square, slope_KNR.ravel()


def solve(white_KND: Array, log_det_K: Array, trace: float, start_KNR: Array, config: Config) -> Array:
    """Factors (K, N, R) of the program: rows of sum_k U_k U_k' sum to one, and each |U_k|^2 is `trace`."""
    program = Program(white_KND, log_det_K, trace, start_KNR)
    flat, last = start_KNR.ravel(), np.inf
    for _ in range(config.multiplier_steps):
        found = minimize(
            program,
            flat,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None)] * len(flat),
            options={"maxiter": config.solver_steps},
        )
        flat = found.x
        miss_N, miss_K = program.misses(flat.reshape(program.shape))
        program.price_N, program.price_K = program.prices(miss_N, miss_K)
        miss = max(np.abs(miss_N).max(), np.abs(miss_K).max())
        if miss < 1e-4:
            break
        if miss > last / 2:
            program.penalty *= 4
        last = miss
    return flat.reshape(program.shape)


def pair_covariances(u_KNR: Array, x_ND: Array) -> Array:
    """sum_ij Z_ij (x_i - x_j)(x_i - x_j)' / (2 n_k) (K, D, D) without pairs."""
    found = []
    for u_NR in u_KNR:
        row_N = u_NR @ u_NR.sum(0)  # Z 1
        mixed_DR = x_ND.T @ u_NR
        second_DD = x_ND.T @ (row_N[:, None] * x_ND)
        covariance_DD = second_DD - mixed_DR @ mixed_DR.T
        found.append(covariance_DD / max(row_N.sum(), 1e-12))
    return np.stack(found)


def memberships(u_KNR: Array) -> Array:
    """Row sums (K, N) of every U_k U_k': how far a row belongs to a cluster."""
    sums_KR = u_KNR.sum(1)
    return (u_KNR * sums_KR[:, None]).sum(2)


@method(
    title="Likelihood-adjusted semidefinite clustering",
    paper="Likelihood Adjusted Semidefinite Programs for Clustering Heterogeneous Data",
    year=2023,
    tags={"estimator", "sklearn"},
)
class LikelihoodSDP(ClusterMixin, Configured, BaseEstimator, config=Config):
    """Clusters of different shapes by low-rank semidefinite programs; see the module's card.

    Fitted besides: `first_labels_` (N,) of the relaxation of k-means, `objectives_`, one a program.
    """

    def fit(self, X: Any, y: Any = None) -> LikelihoodSDP:
        """Cluster X (N, D); returns self. `ValueError` for fewer rows than clusters, or options out of range."""
        config = self._config()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        if len(X) < config.n_clusters:
            raise ValueError(f"{len(X)} rows for {config.n_clusters} clusters; expected at least as many")
        rng = check_random_state(config.random_state)
        x_ND = X - X.mean(0)
        mean_variance = float(x_ND.var(0).mean())
        floor = config.reg_covar * max(mean_variance, 1e-12)
        floor_DD = floor * np.eye(x_ND.shape[1])
        self.first_labels_ = _relaxed_k_means(x_ND, config, rng)
        u_KNR = self._alternate(x_ND, floor_DD, config, rng)
        self.memberships_ = memberships(u_KNR).T
        self.covariances_ = pair_covariances(u_KNR, x_ND) + floor_DD
        self.n_iter_ = len(self.objectives_)
        return self

    def _alternate(self, x_ND: Array, floor_DD: Array, config: Config, rng: np.random.RandomState) -> Array:
        """Covariances and programs in turn, until the labels rest; the last factors (K, N, R)."""
        self.labels_ = self.first_labels_
        self.objectives_ = []
        u_KNR = self._indicators(self.labels_, config)
        spread = 0.3 / np.sqrt(len(x_ND) / config.n_clusters)
        for _ in range(config.max_iter):
            root_KDD = np.linalg.cholesky(pair_covariances(u_KNR, x_ND) + floor_DD)
            white_KND = np.stack([whiten(x_ND, root_DD) for root_DD in root_KDD])
            log_det_K = 2 * log_diagonal(root_KDD)
            jitter_KNR = spread * rng.uniform(size=u_KNR.shape)  # zeros of a factor would stay zero
            u_KNR = solve(white_KND, log_det_K, 1.0, u_KNR + jitter_KNR, config)
            value, _ = objective(u_KNR, white_KND, log_det_K)
            self.objectives_.append(value)
            labels = memberships(u_KNR).argmax(0)
            if (labels == self.labels_).all():
                break
            if len(np.unique(labels)) < config.n_clusters:  # a cluster vanished: keep the last whole partition
                return self._indicators(self.labels_, config)
            self.labels_ = labels
        return u_KNR

    def _indicators(self, labels: Array, config: Config) -> Array:
        """Factors (K, N, R) of a partition, all in the first column."""
        K, N = config.n_clusters, len(labels)
        u_KNR = np.zeros((K, N, config.rank))
        for k in range(K):
            mine = labels == k
            size = max(mine.sum(), 1)
            u_KNR[k, mine, 0] = 1 / np.sqrt(size)
        return u_KNR


def _relaxed_k_means(x_ND: Array, config: Config, rng: np.random.RandomState) -> Array:
    """Labels (N,) from the program of k-means, one factor for all clusters."""
    K, N = config.n_clusters, len(x_ND)
    start_1NR = rng.uniform(0, 2 / np.sqrt(N), (1, N, 2 * K))
    deviation = np.sqrt(max(float(x_ND.var()), 1e-12))
    (u_NR,) = solve(x_ND[None] / deviation, np.zeros(1), K, start_1NR, config)
    if K == 1:
        return np.zeros(N, dtype=int)
    kmeans = KMeans(K, n_init=10, random_state=rng.randint(2**31))
    return kmeans.fit_predict(u_NR @ u_NR.T)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two crossing cigars."""
    x_ND = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    x_ND[:20] *= torch.tensor([3.0, 0.2])
    x_ND[20:] *= torch.tensor([0.2, 3.0])
    x_ND[20:] += torch.tensor([6.0, 0.0])
    return {
        "estimator": LikelihoodSDP(n_clusters=2, random_state=0),
        "X": x_ND.numpy(),
    }
