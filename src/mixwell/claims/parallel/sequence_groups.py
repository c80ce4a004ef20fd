"""FlexSP: groups that fit each batch's lengths are faster than the one size of group that the longest context needs.

Paper: Data-Centric and Heterogeneity-Adaptive Sequence Parallelism for Efficient LLM Training.
Tried: batches of 40 lognormal lengths (median 1,000 tokens, at most 131,072), 16 workers on two nodes, costs by the
paper's constants for 7 billion parameters, 8,192 tokens a worker; simulated seconds of a step. Against groups of 16, in
which the longest context allowed fits. Beside it: the best single size of group for each batch. Against it: less than a
fifth less time, or more than the best single size.
"""

from __future__ import annotations

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, no_worse
from mixwell.core.rng import generator
from mixwell.parallel.sequence_groups import Config, Groups, assigned, best_equal, equal_groups

CONFIG = Config(capacity=8192, buckets=8, gap=0.05, nodes_searched=20)
LONGEST = 131_072
ROWS, MEDIAN_LOG, SPREAD = 40, 6.9, 1.3

CLAIM = Claim(
    "Groups that fit each batch take a fifth less time than the one size that the longest context needs.",
    "simulated seconds of a step", relative=True, at_least=0.2,
    provided=(no_worse(baseline="best single size", margin=0.01),))


def batch(seed: int) -> list[int]:
    """Lengths that 16 workers hold in one pass."""
    draws = generator(seed, "lengths")
    while True:
        lengths = torch.randn(ROWS, generator=draws).mul(SPREAD).add(MEDIAN_LOG).exp().long()
        found = lengths.clamp(16, LONGEST).tolist()
        if equal_groups(found, CONFIG.workers, CONFIG) is not None:
            return found


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Seconds of the three at one batch."""
    lengths = batch(seed)
    (found,) = assigned(lengths, CONFIG)
    static = equal_groups(lengths, CONFIG.workers, CONFIG)
    return {"method": found.seconds, "baseline": seconds(static), "best single size": seconds(
        best_equal(lengths, CONFIG))}


def seconds(found: Groups | None) -> float:
    """Of groups that are known to hold the batch."""
    assert found is not None
    return found.seconds
