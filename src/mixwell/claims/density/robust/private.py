"""Private mixtures: blocks that agree need no bound on the means, private EM with clipped rows needs a right one.

Paper: Polynomial Time and Private Learning of Unbounded Gaussian Mixture Models.
Tried: two components in the plane 1000 from the origin, 2 million rows, epsilon 8, delta 1e-6; largest distance of a
mean from the truth, in standard deviations. Baseline: 20 steps of EM on rows clipped to radius 2000, which holds them
all, Gaussian noise on counts, sums and squares, the same epsilon and delta. Where blocks disagree and nothing is
released, the origin counts as the means. Beside it: twice the rows, twice epsilon, and EM with radius 20 about the
origin and about the means. Against it: a distance that is no smaller.
"""

from __future__ import annotations

import math

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.registry import find

Array = np.ndarray
ROWS, EPSILON, DELTA = 2_000_000, 8.0, 1e-6
CENTRES, DEVIATIONS = np.array([[0.0, 0.0], [6.0, 3.0]]), np.array([[1.0, 1.5], [1.5, 1.0]])
NEAR, FAR = 20.0, 2000.0  # clipping radii
STEPS = 20
OFFSET = 1000.0

CLAIM = Claim("Private mixtures need no bound on the parameters, where clipping needs one.",
              "largest distance of a mean from the truth, in standard deviations")


def sample(rng: np.random.Generator, count: int, offset: float) -> Array:
    """Rows (count, 2), two in five of the first component."""
    labels = (rng.random(count) > 0.4).astype(int)
    spread = DEVIATIONS[labels] * rng.normal(size=(count, 2))
    return offset + CENTRES[labels] + spread


def distance(means: Array, offset: float) -> float:
    """Largest distance of a mean from its own, in standard deviations, in the better order."""
    about = means - offset
    either = largest_gap(about), largest_gap(about[::-1])
    return min(either)


def largest_gap(means: Array) -> float:
    """Largest distance from the centres in this order."""
    scaled = (means - CENTRES) / DEVIATIONS
    return float(np.linalg.norm(scaled, axis=1).max())


def gaussian_noise(sensitivity: float, steps: int) -> float:
    """Standard deviation that makes `steps` releases of that sensitivity private together, by Renyi divergences."""
    above = np.geomspace(1e-3, 1e4, 4000)
    order = 1 + above
    spent = np.log(above / order)
    delta = (math.log(DELTA) + np.log(order)) / above
    left = EPSILON - spent + delta
    variance = steps * order / (2 * left)
    return float(sensitivity * np.sqrt(variance[left > 0].min()))


def in_unit_ball(x_ND: Array, radius: float) -> Array:
    """Rows over the radius, those outside moved to the sphere."""
    norm_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    length_N1 = np.maximum(norm_N1, 1e-9)
    onto_sphere_N1 = 1 / length_N1
    scale_N1 = np.minimum(1 / radius, onto_sphere_N1)
    return x_ND * scale_N1


def first_share(features: Array, weights: Array, means: Array, covariances: Array) -> Array:
    """Responsibilities (N,) of the first component, from quadratic features."""
    precisions = np.linalg.inv(covariances)
    linear = np.stack([p @ m for p, m in zip(precisions, means)])
    _, log_det = np.linalg.slogdet(precisions)
    square = (linear * means).sum(1)
    constant = np.log(weights) + 0.5 * log_det - 0.5 * square
    (a, b), (_, c) = np.moveaxis(precisions, 0, -1)
    natural = np.column_stack([constant, linear, -0.5 * a, -b, -0.5 * c])
    apart = natural[1] - natural[0]
    odds = np.clip(features @ apart, -500, 500)
    return 1 / (1 + np.exp(odds))


def from_sums(sums: Array, radius: float) -> tuple[Array, Array, Array]:
    """Weights, means and covariances from noisy sums (2, 6), kept where a ball's could be."""
    counts = np.maximum(sums[:, 0], 1.0)
    averages = sums / counts[:, None]
    means = np.clip(averages[:, 1:3], -1, 1)
    squares = averages[:, [3, 4, 4, 5]].reshape(2, 2, 2)
    outer = means[:, :, None] * means[:, None]
    values, vectors = np.linalg.eigh(squares - outer)
    least = (0.1 / radius) ** 2
    kept = np.clip(values, least, 1.0)
    scaled = vectors * kept[:, None]
    covariances = scaled @ np.swapaxes(vectors, 1, 2)
    return counts / counts.sum(), means, covariances


def clipped_em(x_ND: Array, radius: float, rng: np.random.Generator) -> Array:
    """Means (2, 2) by EM whose sums over rows in a ball about the origin carry noise."""
    a, b = in_unit_ball(x_ND, radius).T
    squares = [a * a, a * b, b * b]
    features = np.stack([np.ones_like(a), a, b, *squares], axis=1)  # of squared length 3 at most
    noise = gaussian_noise(2 * math.sqrt(3), STEPS)
    drawn = rng.normal(size=2)
    way = drawn / np.linalg.norm(drawn)
    means = 0.25 * np.outer([1.0, -1.0], way)
    weights = np.full(2, 0.5)
    covariances = np.tile(0.25**2 * np.eye(2), (2, 1, 1))
    for _ in range(STEPS):
        first = first_share(features, weights, means, covariances)
        sums = np.stack([first @ features, (1 - first) @ features])
        noisy = sums + noise * rng.normal(size=(2, 6))
        weights, means, covariances = from_sums(noisy, radius)
    return radius * means


def by_clipping(x: Array, radius: float, rng: np.random.Generator) -> float:
    """Error of clipped EM."""
    return distance(clipped_em(x, radius, rng), OFFSET)


def by_blocks(x: Array, epsilon: float, seed: int) -> float:
    """Error of the private mixture."""
    estimator = find("density.robust.private").load()
    options = {"delta": DELTA, "test_share": 0.25, "agreement": 0.61, "random_state": seed}
    model = estimator(epsilon=epsilon, **options).fit(x)
    means = model.means_ if model.released_ else np.zeros((2, 2))
    return distance(means, OFFSET)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Errors far from the origin."""
    rng = np.random.default_rng(seed)
    many = sample(rng, 2 * ROWS, OFFSET)
    x = many[:ROWS]
    clipped = by_clipping(x, NEAR, rng)
    wide = by_clipping(x, FAR, rng)
    centred = clipped_em(x - OFFSET, NEAR, rng)
    about_the_means = distance(centred, 0.0)
    private = by_blocks(x, EPSILON, seed)
    return {"method": private, "baseline": wide,
            "private, twice the rows": by_blocks(many, EPSILON, seed),
            "private, twice epsilon": by_blocks(x, 2 * EPSILON, seed),
            "clipped, radius 20 about the means": about_the_means, "clipped, radius 20": clipped}
