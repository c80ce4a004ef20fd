"""Groups among outliers are found better with a noise component than without one.

Paper: Banfield, Raftery (1993), Model-Based Gaussian and Non-Gaussian Clustering.
Tried: three round groups on a circle of radius 5, 300 rows, and 60 rows uniform in a box thirty wide; three components
for both sides, the noise counted as a group of its own in the truth; adjusted Rand index. Against it: no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._data import on_circle, quietly, rand_index, starts
from mixwell.density.mixtures.gaussian import GaussianMixture
from mixwell.density.mixtures.noise import NoisyGaussianMixture

GROUPS, ROWS, NOISE, RADIUS, HALF_WIDTH = 3, 300, 60, 5.0, 15.0

CLAIM = Claim("A noise component finds groups among outliers better than a plain Gaussian mixture.",
              "adjusted Rand index", lower_is_better=False)


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, 2), and their groups, the last of them noise."""
    own_N = rng.integers(GROUPS, size=ROWS)
    centres_K2 = on_circle(rng, GROUPS, RADIUS)
    grouped_N2 = centres_K2[own_N] + rng.standard_normal((ROWS, 2))
    noise_M2 = rng.uniform(-HALF_WIDTH, HALF_WIDTH, (NOISE, 2))
    labels = np.concatenate([own_N, np.full(NOISE, GROUPS)])
    return np.concatenate([grouped_N2, noise_M2]), labels


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Rand indices of both."""
    rng = np.random.default_rng(seed)
    x_N2, labels = draw(rng)
    options = starts(seed)
    with quietly():
        method = rand_index(labels, NoisyGaussianMixture(GROUPS, noise=0.1, **options), x_N2)
        baseline = rand_index(labels, GaussianMixture(GROUPS, **options), x_N2)
    return {"method": method, "baseline": baseline}
