"""Processes of curves: kernels, expected log densities, conditioning, and the ascent of a kernel's parameters.

T times, G times of the grid; `log_2` and `log_3` hold logarithms of a kernel's variance, its length and its noise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from mixwell.density._gaussian import Array, gain, log_diagonal, log_normal, whiten

JITTER = 1e-6  # share of a kernel's variance on its diagonal


def squared_exponential(a: Tensor, b: Tensor, log_2: Tensor) -> Tensor:
    """Kernel (A, B) with log variance and log length."""
    variance, length = log_2[:2].exp()
    gap = a[:, None] - b[None]
    steps = gap / length
    falling = -0.5 * steps**2
    return variance * falling.exp()


def mean_covariance(grid: Tensor, log_2: Tensor) -> Tensor:
    """c on the union of times (G, G), with jitter."""
    prior = squared_exponential(grid, grid, log_2)
    jitter = JITTER * log_2[0].exp()
    return prior + jitter * torch.eye(len(grid), dtype=grid.dtype)


def task_covariance(t: Tensor, log_3: Tensor) -> Tensor:
    """Psi (n, n): kernel with log variance and log length, and log noise variance."""
    nugget = log_3[2].exp() + JITTER * log_3[0].exp()
    within = squared_exponential(t, t, log_3)
    return within + nugget * torch.eye(len(t), dtype=t.dtype)


def expected_log_normal(y: Tensor, mean: Tensor, spread: Tensor, covariance: Tensor) -> Tensor:
    """E log N(y; u, covariance) over u ~ N(mean, spread)."""
    root = torch.linalg.cholesky(covariance)
    gap = y - mean
    (white,) = whiten(gap[None], root)
    square = white.square().sum()
    solved = torch.cholesky_solve(spread, root)
    trace = solved.diagonal().sum()
    return log_normal(square + trace, log_diagonal(root), len(y))


def condition(y: Array, mean: Array, cov: Array) -> tuple[Array, Array, float]:
    """Means and deviations of the later values given the first ones y, and y's log density but for a constant."""
    n = len(y)
    seen_mean, later_mean = mean[:n], mean[n:]
    seen, across, later = cov[:n, :n], cov[n:, :n], cov[n:, n:]
    gap = y - seen_mean
    pull = gain(across, seen)
    means = later_mean + pull @ gap
    left = later - pull @ cov[:n, n:]
    variances = np.maximum(np.diag(left), 0)
    _, log_det = np.linalg.slogdet(seen)
    solved = np.linalg.solve(seen, gap)
    square = gap @ solved
    log_evidence = -0.5 * (log_det + square)
    return means, np.sqrt(variances), log_evidence


def climb(bound: Any, start: Array, steps: int) -> Array:
    """Logs of kernel parameters that raise a bound, by L-BFGS within e^±6 of the start; never worse than the start."""

    def loss(log: Array) -> tuple[float, Array]:
        at = torch.from_numpy(log.copy())
        at.requires_grad_()
        height = bound(at)
        (slope,) = torch.autograd.grad(height, at)
        value = float(height.detach())
        return -value, -slope.numpy()

    if steps == 0:
        return start
    box = [(value - 6, value + 6) for value in start]
    found = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=box,
        options={"maxiter": steps},
    )
    before, _ = loss(start)
    if np.isfinite(found.fun) and found.fun <= before:
        return found.x
    return start


def climb_rows(rows: Array, bound: Callable[[int, Tensor], Tensor], shared: bool, steps: int) -> None:
    """Raise the bound in the kernels of all rows, in place: in one that they share, or in each alone."""
    everyone = list(range(len(rows)))
    groups = [[i] for i in everyone]
    if shared:
        groups = [everyone]
    for group in groups:
        together = functools.partial(_total, bound, group)
        first = rows[group[0]]
        rows[group] = climb(together, first, steps)


def _total(bound: Callable[[int, Tensor], Tensor], group: list[int], log: Tensor) -> Any:
    return sum(bound(i, log) for i in group)
