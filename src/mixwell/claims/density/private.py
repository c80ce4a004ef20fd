"""Private mixtures: blocks that agree need no bound on the means, private EM with clipped rows needs a right one.

Paper: Polynomial Time and Private Learning of Unbounded Gaussian Mixture Models.
Tried: two components in the plane 1000 from the origin, 2 million rows, epsilon 8, delta 1e-6; largest distance of a
mean from the truth. Baseline: 20 steps of EM on rows clipped to radius 20, Gaussian noise on counts, sums and squares,
the same epsilon and delta. Beside it: twice the rows, twice epsilon, and EM where its radius is right and where it is
2000.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find

Array = np.ndarray
ROWS, EPSILON, DELTA = 2_000_000, 8.0, 1e-6
CENTRES, DEVIATIONS = np.array([[0.0, 0.0], [6.0, 3.0]]), np.array([[1.0, 1.5], [1.5, 1.0]])
NEAR, FAR = 20.0, 2000.0  # clipping radii
STEPS = 20


def sample(rng: np.random.Generator, count: int, offset: float) -> Array:
    """Rows (count, 2), two in five of the first component."""
    labels = (rng.random(count) > 0.4).astype(int)
    return offset + CENTRES[labels] + DEVIATIONS[labels] * rng.normal(size=(count, 2))


def distance(means: Array, offset: float) -> float:
    """Largest distance of a mean from its own, in standard deviations, in the better order."""
    scaled = [np.linalg.norm((means[list(order)] - offset - CENTRES) / DEVIATIONS, axis=1).max()
              for order in ((0, 1), (1, 0))]
    return float(min(scaled))


def gaussian_noise(sensitivity: float, steps: int) -> float:
    """Standard deviation that makes `steps` releases of that sensitivity private together, by Renyi divergences."""
    above = np.geomspace(1e-3, 1e4, 4000)
    order = 1 + above
    left = EPSILON - np.log(above / order) + (math.log(DELTA) + np.log(order)) / above
    return float(sensitivity * np.sqrt((steps * order / (2 * left))[left > 0].min()))


def clipped_em(x_ND: Array, radius: float, rng: np.random.Generator) -> Array:
    """Means (2, 2) by EM whose sums over rows in a ball about the origin carry noise."""
    z_ND = x_ND * np.minimum(1 / radius, 1 / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-9))
    a, b = z_ND.T
    features = np.stack([np.ones_like(a), a, b, a * a, a * b, b * b], axis=1)  # of squared length 3 at most
    noise = gaussian_noise(2 * math.sqrt(3), STEPS)
    way = rng.normal(size=2)
    means = 0.25 * np.outer([1.0, -1.0], way / np.linalg.norm(way))
    weights, covariances = np.full(2, 0.5), np.tile(0.25**2 * np.eye(2), (2, 1, 1))
    for _ in range(STEPS):
        precisions = np.linalg.inv(covariances)
        linear = np.stack([p @ m for p, m in zip(precisions, means)])
        constant = np.log(weights) + 0.5 * np.linalg.slogdet(precisions)[1] - 0.5 * (linear * means).sum(1)
        natural = np.column_stack([constant, linear, -0.5 * precisions[:, 0, 0], -precisions[:, 0, 1],
                                   -0.5 * precisions[:, 1, 1]])
        first = 1 / (1 + np.exp(np.clip(features @ (natural[1] - natural[0]), -500, 500)))
        sums = np.stack([first @ features, (1 - first) @ features]) + noise * rng.normal(size=(2, 6))
        counts = np.maximum(sums[:, 0], 1.0)
        weights, means = counts / counts.sum(), np.clip(sums[:, 1:3] / counts[:, None], -1, 1)
        second = sums[:, [3, 4, 4, 5]].reshape(2, 2, 2) / counts[:, None, None]
        values, vectors = np.linalg.eigh(second - means[:, :, None] * means[:, None])
        values = np.clip(values, (0.1 / radius) ** 2, 1.0)
        covariances = (vectors * values[:, None]) @ np.swapaxes(vectors, 1, 2)
    return radius * means


def claim(bench: Any) -> Evidence:
    """Errors far from the origin."""
    estimator = find("density.robust.private").load()
    names = ("private", "clipped", "private, twice the rows", "private, twice epsilon", "clipped, about the means",
             "clipped, radius 2000")
    found: dict[str, list[float]] = {name: [] for name in names}
    for seed in bench.seeds:
        rng = np.random.default_rng(seed)

        def private(x: Array, epsilon: float = EPSILON, seed: int = seed) -> float:
            model = estimator(epsilon=epsilon, delta=DELTA, test_share=0.25, agreement=0.61, random_state=seed).fit(x)
            return distance(model.means_, 1000.0) if model.released_ else math.nan

        many = sample(rng, 2 * ROWS, 1000.0)
        x = many[:ROWS]
        found["private"].append(private(x))
        found["private, twice the rows"].append(private(many))
        found["private, twice epsilon"].append(private(x, 2 * EPSILON))
        found["clipped"].append(distance(clipped_em(x, NEAR, rng), 1000.0))
        found["clipped, radius 2000"].append(distance(clipped_em(x, FAR, rng), 1000.0))
        found["clipped, about the means"].append(distance(clipped_em(x - 1000.0, NEAR, rng), 0.0))
    evidence = weigh("Private mixtures need no bound on the parameters, where clipping needs one",
                     "largest distance of a mean from the truth, in standard deviations", found["private"],
                     found["clipped"], note="With a radius that is right clipping is far nearer. " + "; ".join(
                         f"{name} {[round(v, 3) for v in found[name]]}" for name in names[2:]))
    evidence.values.update({name: found[name] for name in names[2:]})
    return evidence
