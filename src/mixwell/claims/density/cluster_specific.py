"""Cluster-specific multi-task Gaussian processes: better forecasts of grouped curves than one common mean process.

Paper: Cluster-Specific Predictions with Multi-Task Gaussian Processes.
Tried: 30 curves of three groups drawn from the model, six irregular times each; 15 fresh curves are seen at six times
below 6 and forecast at four beyond. Mean squared forecast error with three clusters against one (the multi-task
process without clusters).
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.density.processes.cluster_specific import ClusterProcesses


def draw(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Times and values of 45 curves; the last 15 have four forecast times at their end."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, 10, 101)
    gap = (grid[:, None] - grid) ** 2
    means = rng.multivariate_normal(np.zeros(101), 4 * np.exp(-0.5 * gap / 1.5**2) + 1e-8 * np.eye(101), 3)
    own = 0.2 * np.exp(-0.5 * gap) + 0.02 * np.eye(101)
    times, values = [], []
    for i in range(45):
        fresh = i >= 30
        at = np.sort(rng.choice(60, 6, replace=False)) if fresh else np.sort(rng.choice(101, 6, replace=False))
        if fresh:
            at = np.r_[at, np.sort(60 + rng.choice(41, 4, replace=False))]
        curve = rng.multivariate_normal(means[i % 3], own)
        times.append(grid[at])
        values.append(curve[at])
    return times, values


def error(clusters: int, seed: int) -> float:
    """Mean squared forecast error."""
    times, values = draw(seed)
    model = ClusterProcesses(n_clusters=clusters, max_iter=8, kernel_steps=5, random_state=seed)
    model.fit(times[:30], values[:30])
    squares = []
    for t, y in zip(times[30:], values[30:]):
        means, _, weights = model.predict(t[:6], y[:6], t[6:])
        squares.append((weights @ means - y[6:]) ** 2)
    return float(np.mean(squares))


def claim(bench: Bench) -> Evidence:
    """Forecast error with three clusters and with one."""
    ours, theirs = ([error(clusters, seed) for seed in bench.seeds] for clusters in (3, 1))
    return weigh("Cluster-specific mean processes forecast grouped curves better.", "mean squared forecast error",
                 ours, theirs)
