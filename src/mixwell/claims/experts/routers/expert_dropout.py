"""MoEC: expert clusters with dropout of their members keep many experts from overfitting few data.

Paper: MoEC: Mixture of Expert Clusters.
Tried: 512 noisy training tokens, regression in sixteen clusters, 32 experts, two a token; four expert clusters with
their variance loss and half of each cluster's members dropped in training, against a plain mixture with the Switch
loss. Against it: a held-out error that is no lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from mixwell.claims._judging import ERROR
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP2, few_data_errors
from mixwell.core.evidence import Evidence, weigh

CLUSTERED: Mapping[str, Any] = {
    "router": {"method": "expert_dropout", "k": 2, "rate": 0.5, "clusters": 4},
    "balance": {"cluster_variance": {"coefficient": 0.01, "clusters": 4}},
}


def claim(bench: Bench) -> Evidence:
    """Held-out error of clusters with dropout against a plain mixture."""
    measure = partial(few_data_errors, bench.seeds, num_experts=32)
    return weigh("Clusters of experts with dropout overfit less than a plain mixture.", ERROR,
                 measure(CLUSTERED), measure(TOP2))
