"""Hard and diverse examples: in every cluster, those that the current self-supervised model predicts worst.

**Equation:** I_V(X -> Y) = H_V(Y | 0) - H_V(Y | X) with H_V(Y | X) = inf over f in V of E[-log f(Y; X)]. Kept are, of
    each cluster, the share of highest loss of predicting the hidden part Y from the visible part X.
**Shapes:** features [N, D], losses [N]; indices [S].
**Reference:** Yang et al. 2024, "Maximizing V-information for Pre-training Superior Foundation Models"; V-information:
    Xu et al. 2020 (2002.10689).
**Differs:** the paper was read in its abstract, which stresses diverse and hard samples: clusters with equal shares are
    our reading of diverse. Pseudo samples made of hard patches are left out. Scores are refreshed by calling again.
**Fails when:** the pool holds noise, which is hardest of all: clusters keep it to its share, no more.
**Cost:** k-means O(N D K) and N losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.method import method
from mixwell.data.pool import Chosen, Pool, check_share, clusters, count_of, evenly


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options; `ValueError` for a value out of range."""

    share: float = 0.2  # of the pool that is kept, above 0 and at most 1
    groups: int = 10  # clusters; 1: hardness alone

    def __post_init__(self) -> None:
        check_share("share", self.share)
        if self.groups < 1:
            raise ValueError(f"groups is {self.groups}; expected at least 1")


@method(title="Hard and diverse examples by V-information", year=2024, tags={"distinct"},
        paper="Maximizing V-information for Pre-training Superior Foundation Models")
def v_information(pool: Pool, config: Config, generator: np.random.Generator) -> Chosen:
    """The hardest of every cluster, those of highest loss first."""
    everything = np.arange(len(pool))
    loss_N = pool.losses_at(everything)
    cluster_N, _ = clusters(pool.features_ND, config.groups, generator)
    kept = []
    for group in range(config.groups):
        inside = np.flatnonzero(cluster_N == group)
        order = np.argsort(-loss_N[inside], kind="stable")
        count = count_of(config.share, len(inside))
        kept.append(inside[order[:count]])
    indices_S = np.concatenate(kept)
    by_loss = np.argsort(-loss_N[indices_S], kind="stable")
    return evenly(indices_S[by_loss])


def information(without_N: np.ndarray, given_N: np.ndarray) -> float:
    """I_V in nats: mean loss of the family's best constant prediction less that of its best from X."""
    lost_N = np.asarray(without_N) - np.asarray(given_N)
    return float(lost_N.mean())


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Two hundred examples of two features."""
    features_ND = generator.standard_normal((200, 2))
    losses_N = generator.exponential(1.0, 200)
    return {"pool": Pool.measured(features_ND, losses_N), "config": Config()}
