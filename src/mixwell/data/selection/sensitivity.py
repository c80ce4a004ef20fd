"""Sensitivity sampling by clusters: few losses at cluster centres say which examples to draw, and how much each counts.

**Equation:** v(e) = ||e - c(e)||^z, lhat(e) = l(centre example of e's cluster); q(e) = (lhat(e) + lambda v(e)) /
    sum(lhat + lambda v); S draws with replacement, each of weight 1 / (S N q(e)). sum w l is an unbiased estimate of
    the mean loss for any q above 0.
**Shapes:** features e [N, D]; K centres; q [N]; indices and weights [S].
**Reference:** Axiotis et al. 2024 (2402.17327), algorithm 1.
**Differs:** z is 2. The centre's loss is that of the example nearest to it. q is mixed with even sampling by a
    hundredth, so that a centre of loss 0 makes no weight infinite.
**Fails when:** losses vary inside clusters by orders of magnitude, as a well fitted classifier's do. K losses are spent
    before the first draw: below some S even sampling with the same number of losses is better.
**Cost:** k-means O(N D K) and K losses, then S losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.method import method
from mixwell.data.pool import Chosen, Pool, clusters

EVEN = 0.01  # share of even sampling


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of sensitivity sampling; `ValueError` for a value out of range."""

    draws: int = 100  # S, at least 1
    centres: int = 20  # K, at least 1
    smoothness: float = 0.1  # lambda: how fast loss may change with squared distance, above 0

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws is {self.draws}; expected at least 1")
        if self.centres < 1:
            raise ValueError(f"centres is {self.centres}; expected at least 1")
        if not self.smoothness > 0:
            raise ValueError(f"smoothness is {self.smoothness}; expected a number above 0")


@method(title="Clustering-based sensitivity sampling", year=2024,
        paper="Data-Efficient Learning via Clustering-Based Sensitivity Sampling: Foundation Models and Beyond")
def sensitivity(pool: Pool, config: Config, generator: np.random.Generator) -> Chosen:
    """Draws with their weights; asks for the losses of the centres alone."""
    shares_N = sensitivities(pool, config, generator)
    indices_S = generator.choice(len(pool), p=shares_N, size=config.draws)
    drawn_S = shares_N[indices_S]
    total = config.draws * len(pool)
    return Chosen(indices_S, 1 / (total * drawn_S))


def sensitivities(pool: Pool, config: Config, generator: np.random.Generator) -> np.ndarray:
    """q [N], of sum 1."""
    cluster_N, centres_KD = clusters(pool.features_ND, config.centres, generator)
    off_ND = pool.features_ND - centres_KD[cluster_N]
    distance_N = (off_ND**2).sum(1)
    nearest = []
    for cluster in range(len(centres_KD)):
        inside_N = cluster_N == cluster
        nearest.append(_nearest(distance_N, inside_N))
    loss_K = pool.losses_at(np.array(nearest))
    wanted_N = loss_K[cluster_N] + config.smoothness * distance_N
    total = wanted_N.sum()
    even = 1 / len(pool)
    if not total > 0:
        return np.full(len(pool), even)
    return (1 - EVEN) * wanted_N / total + EVEN * even


def _nearest(distance_N: np.ndarray, inside_N: np.ndarray) -> int:
    """The example of a cluster that is nearest to its centre."""
    outside_N = np.where(inside_N, distance_N, np.inf)
    return int(outside_N.argmin())


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Loss that is smooth in two features."""
    features_ND = generator.standard_normal((200, 2))
    losses_N = 1 + (features_ND**2).sum(1)
    return {"pool": Pool.measured(features_ND, losses_N), "config": Config(draws=50)}
