"""Cluster-specific multi-task Gaussian processes: better forecasts of grouped curves than one common mean process.

Paper: Cluster-Specific Predictions with Multi-Task Gaussian Processes.
Tried: 30 curves of three groups drawn from the model, six irregular times each; 15 fresh curves are seen at six times
below 6 and forecast at four beyond. Mean squared forecast error with three clusters against one (the multi-task process
without clusters). Against it: an error that is no smaller.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims._series import mean
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.density.processes.cluster_specific import ClusterProcesses

GRID = np.linspace(0, 10, 101)


def kernel(length: float = 1.0) -> np.ndarray:
    """Squared exponential on the grid."""
    square = (GRID[:, None] - GRID) ** 2
    return np.exp(-0.5 * square / length**2)


def irregular(rng: np.random.Generator, low: int, high: int, count: int) -> np.ndarray:
    """Places of the grid from `low` up to `high`, in order."""
    places = rng.choice(high - low, count, replace=False)
    return np.sort(low + places)


def draw(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Times and values of 45 curves; the last 15 have four forecast times at their end."""
    rng = np.random.default_rng(seed)
    eye, nothing = np.eye(len(GRID)), np.zeros(len(GRID))
    shared = 4 * kernel(1.5) + 1e-8 * eye
    means = rng.multivariate_normal(nothing, shared, 3)
    own = 0.2 * kernel() + 0.02 * eye
    times, values = [], []
    for i in range(45):
        if i < 30:
            at = irregular(rng, 0, 101, 6)
        else:
            known = irregular(rng, 0, 60, 6)
            ahead = irregular(rng, 60, 101, 4)
            at = np.concatenate([known, ahead])
        group = means[i % 3]
        curve = rng.multivariate_normal(group, own)
        times.append(GRID[at])
        values.append(curve[at])
    return times, values


def error(bench: Bench, seed: int, *, clusters: int) -> float:
    """Mean squared forecast error."""
    times, values = draw(seed)
    model = ClusterProcesses(n_clusters=clusters, max_iter=8, kernel_steps=5, random_state=seed)
    model.fit(times[:30], values[:30])
    squares = [squared(model, t, y) for t, y in zip(times[30:], values[30:])]
    return mean(np.concatenate(squares))


def squared(model: ClusterProcesses, times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Squared errors of the forecast from the first six times on."""
    means, _, weights = model.predict(times[:6], values[:6], times[6:])
    forecast = weights @ means
    return (forecast - values[6:]) ** 2


CLAIM = Claim("Cluster-specific mean processes forecast grouped curves better.", "mean squared forecast error",
              sides={"method": Side(error, {"clusters": 3}), "baseline": Side(error, {"clusters": 1})})
