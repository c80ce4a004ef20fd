"""MoEC: a loss on the variance of gates inside clusters of experts gives each expert more data to learn from.

Paper: MoEC: Mixture of Expert Clusters.
Tried: 512 noisy training tokens, regression in sixteen clusters, 32 experts, two a token; four expert clusters with
the variance loss alone (no dropout) against the Switch loss. Against it: a held-out error that is no lower.
"""

from __future__ import annotations

from functools import partial

from mixwell.claims._judging import ERROR
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP2, few_data_errors
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Held-out error with the variance loss against the Switch loss."""
    measure = partial(few_data_errors, bench.seeds, num_experts=32)
    method = measure({**TOP2, "balance": {"cluster_variance": {"coefficient": 0.01, "clusters": 4}}})
    return weigh("The clusters' variance loss overfits less than the Switch loss.", ERROR, method, measure(TOP2),
                 note="The loss alone changes nothing measurable; with dropout of the cluster's members the same "
                      "clusters overfit far less (claim expert_dropout), so that the gain comes from the dropout.")
