"""Cluster-specific multi-task Gaussian processes: curves that share the mean process of their group.

**Equation:** curve i of cluster k: y_i(t) = mu_k(t) + f_i(t) + e_i, mu_k ~ GP(m0, c), f_i ~ GP(0, g), e_i ~ N(0,
s^2). With Psi_i = g(t_i, t_i) + s^2 I on the union of all times: C_k = (c^-1 + sum_i tau_ik Psi_i^-1)^-1,
mhat_k = C_k (c^-1 m0 + sum_i tau_ik Psi_i^-1 y_i), and tau_ik is proportional to pi_k N(y_i; mhat_k, Psi_i)
exp(-tr(Psi_i^-1 C_k) / 2). The M step sets pi_k to the mean of tau and raises the bound in the kernels. A new curve is
predicted by sum_k tau_k(y) N(conditional of mhat_k, C_k + Psi), with tau_k(y) proportional to pi_k N(y; mhat_k,
C_k + Psi).

**Shapes:** `times` and `values` are lists of M arrays (n_i,); predictions at T times are means and deviations
(K, T) and weights (K,). Kernels are squared exponentials with a variance and a length.

**Reference:** Leroy, Latouche, Guedj, Gey (2023), Cluster-Specific Predictions with Multi-Task Gaussian Processes,
JMLR, arXiv:2011.07866, propositions 3.1 to 3.4 and 4.1 to 4.3; E step checked against the authors' code.

**Differs:** m0 is one constant, the mean of all values. With kernels of their own (`shared_tasks` False) a new curve
takes the geometric mean of the others'. Times are one-dimensional.

**Fails when:** the union of times passes some thousands (dense matrices); curves of one group differ in kernel.

**Cost:** O(K G^3 + sum_i K n_i^2 G) an iteration with G times in the union, some ten of G^3 for the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._ascent import ascend
from mixwell.density._gaussian import LOG_2PI, Array, gain, log_diagonal, log_normal, log_positive, symmetric, whiten
from mixwell.density._options import Configured

JITTER = 1e-6  # share of a kernel's variance on its diagonal


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the mixture of multi-task Gaussian processes."""

    n_clusters: int = 3  # K
    shared_means: bool = True  # one kernel for all mean processes, or one each
    shared_tasks: bool = True  # one kernel and noise for all curves, or one each
    max_iter: int = 25
    tol: float = 1e-3  # stop when the bound gains less, as a share of it
    kernel_steps: int = 10  # of the optimiser in each M step
    random_state: Any = None  # of k-means on interpolated curves, the start

    def __post_init__(self) -> None:
        if min(self.n_clusters, self.max_iter) < 1 or self.kernel_steps < 0 or self.tol < 0:
            raise ValueError(f"n_clusters, max_iter, kernel_steps, tol are {self.n_clusters}, {self.max_iter}, "
                             f"{self.kernel_steps}, {self.tol}; expected at least 1, 1, 0, 0")


def squared_exponential(a: Tensor, b: Tensor, log_2: Tensor) -> Tensor:
    """Kernel (A, B) with log variance and log length."""
    return log_2[0].exp() * (-0.5 * ((a[:, None] - b[None]) / log_2[1].exp()) ** 2).exp()


def mean_covariance(grid: Tensor, log_2: Tensor) -> Tensor:
    """c on the union of times (G, G), with jitter."""
    return squared_exponential(grid, grid, log_2) + JITTER * log_2[0].exp() * torch.eye(len(grid), dtype=grid.dtype)


def task_covariance(t: Tensor, log_3: Tensor) -> Tensor:
    """Psi (n, n): kernel with log variance and log length, and log noise variance."""
    nugget = log_3[2].exp() + JITTER * log_3[0].exp()
    return squared_exponential(t, t, log_3) + nugget * torch.eye(len(t), dtype=t.dtype)


def expected_log_normal(y: Tensor, mean: Tensor, spread: Tensor, covariance: Tensor) -> Tensor:
    """E log N(y; u, covariance) over u ~ N(mean, spread)."""
    root = torch.linalg.cholesky(covariance)
    white = whiten((y - mean)[None], root)
    trace = torch.cholesky_solve(spread, root).diagonal().sum()
    return log_normal(white.square().sum() + trace, log_diagonal(root), len(y))


@method(
    title="Cluster-specific multi-task Gaussian processes",
    paper="Cluster-Specific Predictions with Multi-Task Gaussian Processes",
    year=2023,
    tags={"estimator", "em"},
)
class ClusterProcesses(Configured, BaseEstimator, config=Config):
    """Mixture of multi-task Gaussian processes, fitted by variational EM; see the module's card.

    Fitted: `resp_` (M, K), `weights_` (K,), `grid_` (G,), `means_` (K, G), `covariances_` (K, G, G), `mean_kernels_`
    (K, 2) and `task_kernels_` (M, 3) in logs, `lower_bounds_`.
    """

    def fit(self, times: Sequence[Any], values: Sequence[Any]) -> ClusterProcesses:
        """Cluster M curves; returns self."""
        config = self._config()
        curves = _checked(times, values)
        if len(curves) < config.n_clusters:
            raise ValueError(f"{len(curves)} curves for {config.n_clusters} clusters; expected at least as many")
        self.grid_ = np.unique(np.concatenate([t.numpy() for t, _ in curves]))
        self._times, self._values = [t for t, _ in curves], [y for _, y in curves]
        self._index = [torch.from_numpy(np.searchsorted(self.grid_, t.numpy())) for t in self._times]
        self._grid = torch.from_numpy(self.grid_)
        everything = torch.cat(self._values)
        self.centre_, variance = float(everything.mean()), float(everything.var().clamp(min=1e-12))
        length = max(float(self.grid_[-1] - self.grid_[0]) / 5, 1e-12)
        self.mean_kernels_ = np.tile(np.log([variance, length]), (config.n_clusters, 1))
        self.task_kernels_ = np.tile(np.log([variance / 10, length, variance / 100]), (len(curves), 1))
        self.resp_ = self._start(config)
        run = ascend(lambda _: (None, self._iterate(config)), None, tol=config.tol, max_iter=config.max_iter,
                     relative=True)
        self.lower_bounds_ = run.bounds
        self.labels_, self.n_iter_ = self.resp_.argmax(1), len(run.bounds)
        return self

    def _iterate(self, config: Config) -> float:
        """M and E step; the bound after them."""
        self._climb(config)
        self._expect()
        return self.bound()

    def _start(self, config: Config) -> Array:
        """Responsibilities (M, K) from k-means on curves interpolated at the union of times; sets the means too."""
        rows = np.stack([np.interp(self.grid_, t.numpy(), y.numpy()) for t, y in zip(self._times, self._values)])
        seed = check_random_state(config.random_state).randint(2**31)
        labels = KMeans(config.n_clusters, n_init=5, random_state=seed).fit_predict(rows)
        self.resp_ = np.eye(config.n_clusters)[labels]
        self.weights_ = self.resp_.mean(0)
        self._fit_means()
        return self.resp_

    def _fit_means(self) -> None:
        """mhat and C of every cluster from the responsibilities."""
        inverse = [torch.linalg.inv(task_covariance(t, torch.from_numpy(log)))
                   for t, log in zip(self._times, self.task_kernels_)]
        means, covariances = [], []
        for k, log in enumerate(self.mean_kernels_):
            precision = torch.linalg.inv(mean_covariance(self._grid, torch.from_numpy(log)))
            shift = torch.zeros_like(self._grid)
            for i, at in enumerate(self._index):
                precision[at[:, None], at] += self.resp_[i, k] * inverse[i]
                shift[at] += self.resp_[i, k] * inverse[i] @ (self._values[i] - self.centre_)
            covariances.append(symmetric(torch.linalg.inv(symmetric(precision))))
            means.append(self.centre_ + covariances[-1] @ shift)
        self.means_, self.covariances_ = torch.stack(means).numpy(), torch.stack(covariances).numpy()

    def _heights(self, i: int, log_3: Tensor) -> Tensor:
        """Expected log density (K,) of curve i in every cluster."""
        at, psi = self._index[i], task_covariance(self._times[i], log_3)
        return torch.stack([expected_log_normal(self._values[i], torch.from_numpy(mean)[at],
                                                torch.from_numpy(cov)[at[:, None], at], psi)
                            for mean, cov in zip(self.means_, self.covariances_)])

    def _expect(self) -> None:
        """Responsibilities, then mean processes."""
        heights = torch.stack([self._heights(i, torch.from_numpy(log)) for i, log in enumerate(self.task_kernels_)])
        log_weights = log_positive(self.weights_)
        self.resp_ = (heights + torch.from_numpy(log_weights)).softmax(1).numpy()
        self._fit_means()

    def _climb(self, config: Config) -> None:
        """The M step: weights, kernels of mean processes, kernels of curves."""
        self.weights_ = self.resp_.mean(0)
        K, M = len(self.weights_), len(self._times)
        centre = torch.full_like(self._grid, self.centre_)

        def mean_bound(k: int, log_2: Tensor) -> Tensor:
            return expected_log_normal(torch.from_numpy(self.means_[k]), centre, torch.from_numpy(self.covariances_[k]),
                                       mean_covariance(self._grid, log_2))

        def task_bound(i: int, log_3: Tensor) -> Tensor:
            return torch.from_numpy(self.resp_[i]) @ self._heights(i, log_3)

        for rows, bound, count, shared in ((self.mean_kernels_, mean_bound, K, config.shared_means),
                                           (self.task_kernels_, task_bound, M, config.shared_tasks)):
            for group in [range(count)] if shared else [[i] for i in range(count)]:
                rows[list(group)] = climb(lambda log: sum(bound(i, log) for i in group),  # noqa: B023 - used at once
                                          rows[group[0]], config.kernel_steps)

    def bound(self) -> float:
        """The evidence lower bound at the present values, in nats."""
        check_is_fitted(self, "resp_")
        total = float((self.resp_ * (log_positive(self.weights_) - log_positive(self.resp_))).sum())
        for i, log in enumerate(self.task_kernels_):
            total += float(torch.from_numpy(self.resp_[i]) @ self._heights(i, torch.from_numpy(log)))
        for mean, cov, log in zip(self.means_, self.covariances_, self.mean_kernels_):
            spread, prior = torch.from_numpy(cov), mean_covariance(self._grid, torch.from_numpy(log))
            centre = torch.full_like(self._grid, self.centre_)
            total += float(expected_log_normal(torch.from_numpy(mean), centre, spread, prior))
            total += 0.5 * float(torch.linalg.slogdet(spread)[1] + len(mean) * (1 + LOG_2PI))
        return total

    def mean_process(self, times: Any) -> tuple[Array, Array]:
        """Posterior means (K, T) and covariances (K, T, T) of the mean processes at any times."""
        check_is_fitted(self, "means_")
        t = torch.as_tensor(np.asarray(times, dtype=np.float64))
        means, covariances = [], []
        for mean, cov, log in zip(self.means_, self.covariances_, self.mean_kernels_):
            log_2 = torch.from_numpy(log)
            prior = mean_covariance(self._grid, log_2)
            pull = gain(squared_exponential(t, self._grid, log_2), prior)
            means.append(self.centre_ + pull @ (torch.from_numpy(mean) - self.centre_))
            covariances.append(squared_exponential(t, t, log_2) - pull @ (prior - torch.from_numpy(cov)) @ pull.T)
        return torch.stack(means).numpy(), torch.stack(covariances).numpy()

    def predict(self, seen_times: Any, seen_values: Any, times: Any) -> tuple[Array, Array, Array]:
        """Predict a curve at `times` (T,) from what was seen of it: means, standard deviations (K, T), weights (K,).

        Deviations are of noisy values. Nothing may have been seen (empty arrays): the weights are then `weights_`.
        """
        check_is_fitted(self, "means_")
        seen, y = (np.asarray(v, dtype=np.float64).ravel() for v in (seen_times, seen_values))
        new = np.asarray(times, dtype=np.float64).ravel()
        if seen.shape != y.shape:
            raise ValueError(f"{len(seen)} seen times and {len(y)} seen values; expected as many")
        log_3 = torch.from_numpy(self.task_kernels_.mean(0))
        both, n = torch.from_numpy(np.r_[seen, new]), len(seen)
        mean_KT, cov_KTT = self.mean_process(both.numpy())
        noise = (torch.exp(log_3[2]) * torch.eye(len(both), dtype=torch.float64)).numpy()
        cov_KTT = cov_KTT + squared_exponential(both, both, log_3).numpy() + noise \
            + JITTER * math.exp(float(log_3[0])) * np.eye(len(both))
        means, deviations, heights = [], [], []
        for mean, cov in zip(mean_KT, cov_KTT):
            pull = gain(cov[n:, :n], cov[:n, :n])
            means.append(mean[n:] + pull @ (y - mean[:n]))
            deviations.append(np.sqrt(np.maximum(np.diag(cov[n:, n:] - pull @ cov[:n, n:]), 0)))
            gap = y - mean[:n]
            heights.append(-0.5 * (np.linalg.slogdet(cov[:n, :n])[1] + gap @ np.linalg.solve(cov[:n, :n], gap)))
        log_weights = log_positive(self.weights_) + np.array(heights)
        weights = np.exp(log_weights - log_weights.max())
        return np.array(means), np.array(deviations), weights / weights.sum()


def climb(bound: Any, start: Array, steps: int) -> Array:
    """Logs of kernel parameters that raise a bound, by L-BFGS within e^±6 of the start; never worse than the start."""
    def loss(log: Array) -> tuple[float, Array]:
        at = torch.from_numpy(log.copy()).requires_grad_()
        height = bound(at)
        (slope,) = torch.autograd.grad(height, at)
        return -float(height.detach()), -slope.numpy()

    if steps == 0:
        return start
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(v - 6, v + 6) for v in start],
                     options={"maxiter": steps})
    return found.x if np.isfinite(found.fun) and found.fun <= loss(start)[0] else start


def _checked(times: Sequence[Any], values: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
    if len(times) != len(values):
        raise ValueError(f"{len(times)} arrays of times and {len(values)} of values; expected as many")
    curves = []
    for i, (t, y) in enumerate(zip(times, values)):
        t, y = (np.asarray(v, dtype=np.float64).ravel() for v in (t, y))
        if len(t) != len(y) or len(t) == 0:
            raise ValueError(f"curve {i} has {len(t)} times and {len(y)} values; expected as many, and one or more")
        if not (np.isfinite(t).all() and np.isfinite(y).all()) or len(np.unique(t)) < len(t):
            raise ValueError(f"curve {i} holds values that are not finite, or a time twice; drop or average them")
        order = np.argsort(t)
        curves.append((torch.from_numpy(t[order]), torch.from_numpy(y[order])))
    return curves


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight curves of two groups on their own times."""
    times = [torch.rand(6, generator=generator, dtype=torch.float64).numpy() * 4 for _ in range(8)]
    noise = torch.randn(8, 6, generator=generator, dtype=torch.float64).numpy()
    values = [(-1) ** i * np.sin(t) + 0.1 * e for i, (t, e) in enumerate(zip(times, noise))]
    estimator = ClusterProcesses(n_clusters=2, max_iter=3, kernel_steps=3, random_state=0)
    return {"estimator": estimator, "times": times, "values": values}
