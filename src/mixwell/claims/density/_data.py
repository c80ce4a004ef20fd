"""What claims about densities share: draws, starts, matchings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mixwell.density.values.gaussian_mixture import GaussianMixtureDensity


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings of fits that are known not to converge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def starts(seed: int, n_init: int = 5) -> dict[str, Any]:
    """Options of a fit of 500 steps at most from each of several starts."""
    return {"n_init": n_init, "max_iter": 500, "random_state": seed}


def logistic(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def on_circle(rng: np.random.Generator, groups: int, radius: float) -> np.ndarray:
    """Points (groups, 2) at equal angles, turned at random."""
    turn = np.arange(groups) / groups + rng.random()
    angle = 2 * np.pi * turn
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def around(means_KD: np.ndarray, roots_KDE: np.ndarray, labels_N: np.ndarray, noise_NE: np.ndarray) -> np.ndarray:
    """Rows (N, D) of Gaussians: a mean and a root of the covariance for each, by standard normal noise."""
    roots_NDE = roots_KDE[labels_N]
    spread_ND = np.einsum("nde,ne->nd", roots_NDE, noise_NE)
    return means_KD[labels_N] + spread_ND


def matched_rms(squares_KK: np.ndarray) -> float:
    """Root of the mean square distance under the best matching of rows and columns."""
    from scipy.optimize import linear_sum_assignment

    pairs = linear_sum_assignment(squares_KK)
    return float(np.sqrt(squares_KK[pairs].mean()))


def rand_index(labels: np.ndarray, model: Any, x: np.ndarray) -> float:
    """Adjusted Rand index of the labels and of the components that a fitted model gives the same rows."""
    from sklearn.metrics import adjusted_rand_score

    found = model.fit(x).predict(x)
    return adjusted_rand_score(labels, found)


def overlapping(draws: torch.Generator, components: int, columns: int) -> GaussianMixtureDensity:
    """A mixture of components near the origin."""
    root = 0.6 * torch.randn(components, columns, columns, generator=draws, dtype=torch.float64)
    means = 1.5 * torch.randn(components, columns, generator=draws, dtype=torch.float64)
    weights = 0.2 + torch.rand(components, generator=draws, dtype=torch.float64)
    covariances = root @ root.mT + 0.3 * torch.eye(columns)
    return GaussianMixtureDensity(weights / weights.sum(), means, covariances)
