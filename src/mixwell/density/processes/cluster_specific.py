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
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._ascent import ascend
from mixwell.density._gaussian import LOG_2PI, Array, gain, log_positive, symmetric
from mixwell.density._options import Configured
from mixwell.density.processes._curves import (
    JITTER,
    climb_rows,
    condition,
    expected_log_normal,
    mean_covariance,
    squared_exponential,
    task_covariance,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the mixture of multi-task Gaussian processes; `ValueError` for one out of range."""

    n_clusters: int = 3  # K
    shared_means: bool = True  # one kernel for all mean processes, or one each
    shared_tasks: bool = True  # one kernel and noise for all curves, or one each
    max_iter: int = 25
    tol: float = 1e-3  # stop when the bound gains less, as a share of it
    kernel_steps: int = 10  # of the optimiser in each M step
    random_state: Any = None  # of k-means on interpolated curves, the start

    def __post_init__(self) -> None:
        for name in ("n_clusters", "max_iter"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        for name in ("kernel_steps", "tol"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} is {value}; expected at least 0")


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
        """Cluster M curves; returns self.

        `ValueError` for fewer curves than clusters, curves whose times and values differ in number or are not finite, a
        time that comes twice, or options out of range.
        """
        config = self._config()
        curves = _checked(times, values)
        if len(curves) < config.n_clusters:
            raise ValueError(f"{len(curves)} curves for {config.n_clusters} clusters; expected at least as many")
        self._times = [t for t, _ in curves]
        self._values = [y for _, y in curves]
        self._grid, at = torch.cat(self._times).unique(return_inverse=True)
        self._index = list(at.split([len(t) for t in self._times]))
        self.grid_ = self._grid.numpy()
        self._start_kernels(config.n_clusters)
        self._start_groups(config)
        run = ascend(
            lambda _: (None, self._iterate(config)),
            None,
            tol=config.tol,
            max_iter=config.max_iter,
            relative=True,
        )
        self.lower_bounds_ = run.bounds
        self.n_iter_ = len(run.bounds)
        self.labels_ = self.resp_.argmax(1)
        return self

    def _start_kernels(self, n_clusters: int) -> None:
        """Variances and lengths from the spread of all values and times."""
        everything = torch.cat(self._values)
        self.centre_ = float(everything.mean())
        variance = float(everything.var().clamp(min=1e-12))
        first, last = self.grid_[0], self.grid_[-1]
        span = float(last - first)
        length = max(span / 5, 1e-12)
        mean_kernel = np.log([variance, length])
        task_kernel = np.log([variance / 10, length, variance / 100])
        n_curves = len(self._times)
        self.mean_kernels_ = np.tile(mean_kernel, (n_clusters, 1))
        self.task_kernels_ = np.tile(task_kernel, (n_curves, 1))

    def _iterate(self, config: Config) -> float:
        """M and E step; the bound after them."""
        self._climb(config)
        self._expect()
        return self.bound()

    def _start_groups(self, config: Config) -> None:
        """Responsibilities (M, K) from k-means on curves interpolated at the union of times, and means from these."""
        rows = []
        for t, y in zip(self._times, self._values):
            row = np.interp(self.grid_, t.numpy(), y.numpy())
            rows.append(row)
        K = config.n_clusters
        rng = check_random_state(config.random_state)
        seed = rng.randint(2**31)
        kmeans = KMeans(K, n_init=5, random_state=seed)
        labels = kmeans.fit_predict(np.stack(rows))
        self.resp_ = np.eye(K)[labels]
        self.weights_ = self.resp_.mean(0)
        self._fit_means()

    def _fit_means(self) -> None:
        """mhat and C of every cluster from the responsibilities."""
        inverses = []
        for t, log in zip(self._times, self.task_kernels_):
            log_3 = torch.from_numpy(log)
            psi = task_covariance(t, log_3)
            inverses.append(torch.linalg.inv(psi))
        means, covariances = [], []
        for k in range(len(self.mean_kernels_)):
            mean, covariance = self._fit_mean(k, inverses)
            means.append(mean)
            covariances.append(covariance)
        self.means_ = torch.stack(means).numpy()
        self.covariances_ = torch.stack(covariances).numpy()

    def _fit_mean(self, k: int, inverses: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean (G,) and covariance (G, G) of one cluster's mean process, from the inverse of every curve's Psi."""
        precision = torch.linalg.inv(self._prior(k))
        shift = torch.zeros_like(self._grid)
        for at, y, inverse, resp in zip(self._index, self._values, inverses, self.resp_[:, k]):
            weighed = resp * inverse
            precision[at[:, None], at] += weighed
            shift[at] += weighed @ (y - self.centre_)
        covariance = torch.linalg.inv(symmetric(precision))
        covariance = symmetric(covariance)
        return self.centre_ + covariance @ shift, covariance

    def _prior(self, k: int) -> Tensor:
        """c of cluster k on the union of times."""
        log_2 = torch.from_numpy(self.mean_kernels_[k])
        return mean_covariance(self._grid, log_2)

    def _log_densities(self, i: int, log_3: Tensor) -> Tensor:
        """Expected log density (K,) of curve i in every cluster."""
        at = self._index[i]
        block = (at[:, None], at)
        psi = task_covariance(self._times[i], log_3)
        found = []
        for mean, covariance in zip(self.means_, self.covariances_):
            mean_n = torch.from_numpy(mean)[at]
            spread_nn = torch.from_numpy(covariance)[block]
            expected = expected_log_normal(self._values[i], mean_n, spread_nn, psi)
            found.append(expected)
        return torch.stack(found)

    def _task_bound(self, i: int, log_3: Tensor) -> Tensor:
        """What curve i adds to the bound, with its kernel at some parameters."""
        resp_K = torch.from_numpy(self.resp_[i])
        return resp_K @ self._log_densities(i, log_3)

    def _mean_bound(self, k: int, log_2: Tensor) -> Tensor:
        """Expected log density of cluster k's mean process under its prior, with the kernel at some parameters."""
        mean = torch.from_numpy(self.means_[k])
        spread = torch.from_numpy(self.covariances_[k])
        centre = torch.full_like(self._grid, self.centre_)
        prior = mean_covariance(self._grid, log_2)
        return expected_log_normal(mean, centre, spread, prior)

    def _expect(self) -> None:
        """Responsibilities, then mean processes."""
        found = []
        for i, log in enumerate(self.task_kernels_):
            log_3 = torch.from_numpy(log)
            found.append(self._log_densities(i, log_3))
        log_weights_K = torch.from_numpy(log_positive(self.weights_))
        log_joint_MK = torch.stack(found) + log_weights_K
        self.resp_ = log_joint_MK.softmax(1).numpy()
        self._fit_means()

    def _climb(self, config: Config) -> None:
        """The M step: weights, kernels of mean processes, kernels of curves."""
        self.weights_ = self.resp_.mean(0)
        steps = config.kernel_steps
        mean_kernels, task_kernels = self.mean_kernels_, self.task_kernels_
        climb_rows(mean_kernels, self._mean_bound, config.shared_means, steps)
        climb_rows(task_kernels, self._task_bound, config.shared_tasks, steps)

    def bound(self) -> float:
        """The evidence lower bound at the present values, in nats; an error before `fit`."""
        check_is_fitted(self, "resp_")
        log_weights_K = log_positive(self.weights_)
        log_ratio_MK = log_weights_K - log_positive(self.resp_)
        total = float((self.resp_ * log_ratio_MK).sum())
        for i, log in enumerate(self.task_kernels_):
            log_3 = torch.from_numpy(log)
            total += float(self._task_bound(i, log_3))
        for k, log in enumerate(self.mean_kernels_):
            log_2 = torch.from_numpy(log)
            total += float(self._mean_bound(k, log_2))
            spread = torch.from_numpy(self.covariances_[k])
            _, log_det = torch.linalg.slogdet(spread)
            entropy_2 = log_det + len(spread) * (1 + LOG_2PI)
            total += 0.5 * float(entropy_2)
        return total

    def mean_process(self, times: Any) -> tuple[Array, Array]:
        """Posterior means (K, T) and covariances (K, T, T) of the mean processes at any times; needs `fit`.

        An error before `fit`.
        """
        check_is_fitted(self, "means_")
        t = torch.as_tensor(np.asarray(times, dtype=np.float64))
        means, covariances = [], []
        for k, log in enumerate(self.mean_kernels_):
            log_2 = torch.from_numpy(log)
            prior_GG = self._prior(k)
            pull_TG = gain(squared_exponential(t, self._grid, log_2), prior_GG)
            shift_G = torch.from_numpy(self.means_[k]) - self.centre_
            means.append(self.centre_ + pull_TG @ shift_G)
            learned_GG = prior_GG - torch.from_numpy(self.covariances_[k])
            prior_TT = squared_exponential(t, t, log_2)
            covariances.append(prior_TT - pull_TG @ learned_GG @ pull_TG.T)
        return torch.stack(means).numpy(), torch.stack(covariances).numpy()

    def predict(self, seen_times: Any, seen_values: Any, times: Any) -> tuple[Array, Array, Array]:
        """Predict a curve at `times` (T,) from what was seen of it: means, standard deviations (K, T), weights (K,).

        Deviations are of noisy values. Nothing may have been seen (empty arrays): the weights are then `weights_`.
        `ValueError` for unequal numbers of seen times and values; an error before `fit`.
        """
        check_is_fitted(self, "means_")
        seen = np.asarray(seen_times, dtype=np.float64).ravel()
        y = np.asarray(seen_values, dtype=np.float64).ravel()
        new = np.asarray(times, dtype=np.float64).ravel()
        if seen.shape != y.shape:
            raise ValueError(f"{len(seen)} seen times and {len(y)} seen values; expected as many")
        mean_KT, cov_KTT = self._predictive(np.r_[seen, new])
        found = [condition(y, mean, cov) for mean, cov in zip(mean_KT, cov_KTT)]
        means, deviations, log_evidence = zip(*found)
        log_joint_K = log_positive(self.weights_) + np.array(log_evidence)
        joint_K = np.exp(log_joint_K - log_joint_K.max())
        return np.array(means), np.array(deviations), joint_K / joint_K.sum()

    def _predictive(self, times: Array) -> tuple[Array, Array]:
        """Means (K, T) and covariances (K, T, T) of a new curve's noisy values under every cluster."""
        t = torch.from_numpy(times)
        log_3 = torch.from_numpy(self.task_kernels_.mean(0))
        eye = torch.eye(len(t), dtype=torch.float64)
        mean_KT, cov_KTT = self.mean_process(times)
        own_TT = squared_exponential(t, t, log_3).numpy()
        noise_TT = (torch.exp(log_3[2]) * eye).numpy()
        jitter = JITTER * math.exp(float(log_3[0]))
        return mean_KT, cov_KTT + own_TT + noise_TT + jitter * eye.numpy()


def _checked(times: Sequence[Any], values: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
    if len(times) != len(values):
        raise ValueError(f"{len(times)} arrays of times and {len(values)} of values; expected as many")
    pairs = zip(times, values)
    return [_checked_curve(i, t, y) for i, (t, y) in enumerate(pairs)]


def _checked_curve(i: int, times: Any, values: Any) -> tuple[Tensor, Tensor]:
    """One curve in the order of its times; a `ValueError` that names it by `i`."""
    t = np.asarray(times, dtype=np.float64).ravel()
    y = np.asarray(values, dtype=np.float64).ravel()
    if len(t) != len(y) or len(t) == 0:
        raise ValueError(f"curve {i} has {len(t)} times and {len(y)} values; expected as many, and one or more")
    finite = np.isfinite([t, y]).all()
    different = np.unique(t)
    if not finite or len(different) < len(t):
        raise ValueError(f"curve {i} holds values that are not finite, or a time twice; drop or average them")
    order = np.argsort(t)
    return torch.from_numpy(t[order]), torch.from_numpy(y[order])


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight curves of two groups on their own times."""
    estimator = ClusterProcesses(n_clusters=2, max_iter=3, kernel_steps=3, random_state=0)
    times = []
    for _ in range(8):
        unit = torch.rand(6, generator=generator, dtype=torch.float64)
        times.append(unit.numpy() * 4)
    noise = torch.randn(8, 6, generator=generator, dtype=torch.float64).numpy()
    values = []
    for i, t in enumerate(times):
        sign = (-1) ** i
        values.append(sign * np.sin(t) + 0.1 * noise[i])
    return {
        "estimator": estimator,
        "times": times,
        "values": values,
    }
