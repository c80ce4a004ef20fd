"""Noise that hides one row: truncated Laplace for a share, normal for a mixture, and how far apart mixtures may be."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

ROOT2 = math.sqrt(2)


class Budget(NamedTuple):
    """What a step may spend of the privacy."""

    epsilon: float
    delta: float

    def times(self, share: float) -> Budget:
        """A part of it."""
        return Budget(self.epsilon * share, self.delta * share)


def spread(radius: float) -> float:
    """gamma: how far apart two mixtures are at most that have a third within `radius` of both."""
    return 2 * radius * math.exp(radius / ROOT2)


def reach(sensitivity: float, epsilon: float, delta: float) -> float:
    """A: the largest truncated Laplace noise that hides a number of that sensitivity."""
    if math.isinf(epsilon):
        return 0.0
    shrunk = math.exp(-epsilon)
    odds = -math.expm1(-epsilon) / (2 * delta)  # (e^eps - 1) / (2 delta), over e^eps, which may be too large
    log_term = epsilon + math.log(odds + shrunk)
    return sensitivity / epsilon * log_term


def truncated_laplace(u: float, sensitivity: float, epsilon: float, delta: float) -> float:
    """Quantile u in [0, 1] of the noise with density ~ exp(-epsilon |z| / sensitivity) on [-A, A]."""
    if math.isinf(epsilon):
        return 0.0
    scale = sensitivity / epsilon
    largest = reach(sensitivity, epsilon, delta)
    inside = -math.expm1(-largest / scale)
    mass = abs(2 * u - 1) * inside
    below_one = min(mass, 1 - 2**-53)
    log_left = math.log1p(-below_one)
    signed_scale = math.copysign(scale, 0.5 - u)
    return signed_scale * log_left


def renyi_bound(order: Any, gamma: float, noise: float, dim: int) -> Any:
    """Largest Renyi divergence of that order between releases of mixtures at most gamma apart; the module's card."""
    shrunk = 1 + order * math.expm1(-ROOT2 * gamma)
    with np.errstate(invalid="ignore", divide="ignore"):
        from_means = order * gamma**2 / (2 * noise**2 * shrunk)
        log_ratio = -ROOT2 * order * gamma - np.log(shrunk)
        from_scales = (dim + 1) * log_ratio / (2 * (order - 1))
    return np.where(shrunk > 0, from_means + from_scales, math.inf)


def noise_scale(gamma: float, dim: int, epsilon: float, delta: float) -> float:
    """eta: the least noise that makes the release private; infinite where none does."""
    if math.isinf(epsilon):
        return 0.0
    above_one = np.geomspace(1e-4, 1e6, 4000)
    order = 1 + above_one
    # what of epsilon the conversion and the scales leave to the means
    left = epsilon - np.log(above_one / order) + (math.log(delta) + np.log(order)) / above_one
    left = left - renyi_bound(order, gamma, math.inf, dim)
    possible = left > 0
    order, left = order[possible], left[possible]
    shrunk = 1 + order * math.expm1(-ROOT2 * gamma)
    factor = np.sqrt(order / (2 * shrunk * left))
    return float(gamma * factor.min(initial=math.inf))


def largest_radius(dim: int, epsilon: float, delta: float) -> float:
    """The radius that some noise still hides, to a thousandth."""
    low, high = 0.0, 10.0
    while high - low > 1e-3 * high:
        middle = 0.5 * (low + high)
        noise = noise_scale(spread(middle), dim, epsilon, delta)
        if math.isfinite(noise):
            low = middle
        else:
            high = middle
    return low
