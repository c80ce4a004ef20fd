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
    """Options of the likelihood-adjusted program."""

    n_clusters: int = 2  # K
    rank: int = 2  # R, of every cluster's factor; 1 is a membership vector, and meets more poor optima
    max_iter: int = 10  # of program and covariances in turn; 0 keeps the relaxation of k-means
    multiplier_steps: int = 12  # of the augmented Lagrangian
    solver_steps: int = 60  # of the inner optimiser, at most
    reg_covar: float = 1e-3  # added to covariances, as a share of the mean column variance
    random_state: Any = None  # of the factors' start

    def __post_init__(self) -> None:
        for name in ("n_clusters", "rank", "multiplier_steps", "solver_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.max_iter < 0 or self.reg_covar <= 0:
            raise ValueError(f"max_iter is {self.max_iter} and reg_covar {self.reg_covar}; expected 0 or more, above 0")


def objective(u_KNR: Array, white_KND: Array, log_det_K: Array) -> tuple[float, Array]:
    """sum_k <D_k / 2 + log|S_k| J, U_k U_k'> / 2 and its gradient; rows of `white_KND` are S_k^-1/2 x."""
    square_KN = (white_KND**2).sum(2)
    sums_KR = u_KNR.sum(1)
    mixed_KDR = white_KND.transpose(0, 2, 1) @ u_KNR
    # (D U)_i = |x_i|^2 sum_j U_j + sum_j |x_j|^2 U_j - 2 x_i . sum_j x_j U_j
    du_KNR = square_KN[:, :, None] * sums_KR[:, None] - 2 * white_KND @ mixed_KDR \
        + np.einsum("kn,knr->kr", square_KN, u_KNR)[:, None]
    cu_KNR = du_KNR / 2 + log_det_K[:, None, None] * sums_KR[:, None]
    return 0.5 * float((cu_KNR * u_KNR).sum()), cu_KNR


def solve(white_KND: Array, log_det_K: Array, trace: float, start_KNR: Array, config: Config) -> Array:
    """Factors (K, N, R) of the program: rows of sum_k U_k U_k' sum to one, and each |U_k|^2 is `trace`."""
    shape, N = start_KNR.shape, start_KNR.shape[1]
    scale = max(abs(objective(start_KNR, white_KND, log_det_K)[0]), 1e-12)  # makes the program of order one
    price_N, price_K, penalty = np.zeros(N), np.zeros(shape[0]), 10.0 / N

    def misses(u: Array) -> tuple[Array, Array]:
        return np.einsum("knr,kr->n", u, u.sum(1)) - 1, (u**2).sum((1, 2)) - trace

    def lagrangian(flat: Array) -> tuple[float, Array]:
        u = flat.reshape(shape)
        value, slope = objective(u, white_KND, log_det_K)
        rows, traces = misses(u)
        push_N, push_K = price_N + penalty * rows, price_K + penalty * N * traces
        total = value / scale + price_N @ rows + price_K @ traces \
            + 0.5 * penalty * (rows @ rows + N * traces @ traces)
        slope = slope / scale + push_N[:, None] * u.sum(1)[:, None] + np.einsum("n,knr->kr", push_N, u)[:, None] \
            + 2 * push_K[:, None, None] * u
        return total, slope.ravel()

    flat, last = start_KNR.ravel(), np.inf
    for _ in range(config.multiplier_steps):
        flat = minimize(lagrangian, flat, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(flat),
                        options={"maxiter": config.solver_steps}).x
        rows, traces = misses(flat.reshape(shape))
        price_N, price_K = price_N + penalty * rows, price_K + penalty * N * traces
        miss = max(np.abs(rows).max(), np.abs(traces).max())
        if miss < 1e-4:
            break
        if miss > last / 2:
            penalty *= 4
        last = miss
    return flat.reshape(shape)


def pair_covariances(u_KNR: Array, x_ND: Array) -> Array:
    """sum_ij Z_ij (x_i - x_j)(x_i - x_j)' / (2 n_k) (K, D, D) without pairs."""
    found = []
    for u_NR in u_KNR:
        row_N = u_NR @ u_NR.sum(0)  # Z 1
        mixed_DR = x_ND.T @ u_NR
        found.append((x_ND.T @ (row_N[:, None] * x_ND) - mixed_DR @ mixed_DR.T) / max(row_N.sum(), 1e-12))
    return np.stack(found)


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
        """Cluster X (N, D); returns self."""
        config = self._config()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        K, N = config.n_clusters, len(X)
        if N < K:
            raise ValueError(f"{N} rows for {K} clusters; expected at least as many")
        rng = check_random_state(config.random_state)
        x_ND = X - X.mean(0)
        floor = config.reg_covar * max(float(x_ND.var(0).mean()), 1e-12)
        start_1NR = rng.uniform(0, 2 / np.sqrt(N), (1, N, 2 * K))
        whole = solve(x_ND[None] / np.sqrt(max(float(x_ND.var()), 1e-12)), np.zeros(1), K, start_1NR, config)[0]
        self.first_labels_ = KMeans(K, n_init=10, random_state=rng.randint(2**31)).fit_predict(whole @ whole.T) \
            if K > 1 else np.zeros(N, dtype=int)
        self.labels_, self.objectives_ = self.first_labels_, []
        u_KNR = self._indicators(self.labels_, config)
        for _ in range(config.max_iter):
            cov_KDD = pair_covariances(u_KNR, x_ND) + floor * np.eye(x_ND.shape[1])
            root_KDD = np.linalg.cholesky(cov_KDD)
            white_KND = np.stack([whiten(x_ND, root) for root in root_KDD])
            log_det_K = 2 * log_diagonal(root_KDD)
            jitter = 0.3 / np.sqrt(N / K) * rng.uniform(size=u_KNR.shape)  # zeros of a factor would stay zero
            u_KNR = solve(white_KND, log_det_K, 1.0, u_KNR + jitter, config)
            self.objectives_.append(objective(u_KNR, white_KND, log_det_K)[0])
            labels = (u_KNR * u_KNR.sum(1)[:, None]).sum(2).argmax(0)
            if (labels == self.labels_).all():
                break
            if len(np.unique(labels)) < K:  # a cluster vanished: keep the last whole partition
                u_KNR = self._indicators(self.labels_, config)
                break
            self.labels_ = labels
        self.memberships_ = (u_KNR * u_KNR.sum(1)[:, None]).sum(2).T
        self.covariances_ = pair_covariances(u_KNR, x_ND) + floor * np.eye(x_ND.shape[1])
        self.n_iter_ = len(self.objectives_)
        return self

    def _indicators(self, labels: Array, config: Config) -> Array:
        """Factors (K, N, R) of a partition, all in the first column."""
        u_KNR = np.zeros((config.n_clusters, len(labels), config.rank))
        for k in range(config.n_clusters):
            mine = labels == k
            u_KNR[k, mine, 0] = 1 / np.sqrt(max(mine.sum(), 1))
        return u_KNR


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two crossing cigars."""
    x = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    x[:20] *= torch.tensor([3.0, 0.2])
    x[20:] = x[20:] * torch.tensor([0.2, 3.0]) + torch.tensor([6.0, 0.0])
    return {"estimator": LikelihoodSDP(n_clusters=2, random_state=0), "X": x.numpy()}
