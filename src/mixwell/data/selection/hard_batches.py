"""Hard batches: of an epoch's mini-batches, those of highest loss are trained on again.

**Equation:** losses l_1..l_m of an epoch's mini-batches; kept are the ceil(delta m) of highest l_j.
**Shapes:** an example of the pool is a mini-batch here; its features are not read.
**Reference:** Alhamoud et al. 2023, "Can we learn better with hard samples?".
**Differs:** the paper was read in its abstract: the order of the second pass is by falling loss, ties by their place.
    Losses are those of the first pass, while the weights moved.
**Fails when:** batches are large and shuffled: their losses differ by chance alone. An epoch has (1 + delta) m steps
    then: compare by steps.
**Cost:** O(m log m); no forward pass of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.method import method
from mixwell.data.pool import Chosen, Pool, check_share, count_of, evenly


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of hard batches; `ValueError` for what is no share."""

    share: float = 0.2  # delta: of the batches that are trained on again, above 0 and at most 1

    def __post_init__(self) -> None:
        check_share("share", self.share)


@method(title="Hard batches", year=2023, paper="Can we learn better with hard samples?", tags={"distinct"})
def hard_batches(pool: Pool, config: Config, generator: np.random.Generator) -> Chosen:
    """Batches of highest loss, the highest first."""
    everything = np.arange(len(pool))
    loss_N = pool.losses_at(everything)
    order_N = np.argsort(-loss_N, kind="stable")
    kept = count_of(config.share, len(pool))
    return evenly(order_N[:kept])


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Forty batches."""
    losses_N = generator.exponential(1.0, 40)
    return {"pool": Pool.measured(np.zeros((40, 1)), losses_N), "config": Config()}
