"""MoEC: expert clusters with dropout of their members keep many experts from overfitting few data.

Paper: MoEC: Mixture of Expert Clusters.
Tried: 512 noisy training tokens, regression in sixteen equally frequent clusters, 32 experts, two a token; four expert
clusters with their variance loss, and 25, 50 or 75 % of each cluster's members dropped in training, against a plain
mixture with the Switch loss. Against it: a held-out error that is no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import ERROR
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._synthetic import BALANCED, TOP2, few_data
from mixwell.claims.grids import RATES, variants

VARIANCE = {"cluster_variance": {"coefficient": 0.01, "clusters": 4}}
ROUTERS = variants({"method": "expert_dropout", "k": 2, "clusters": 4}, rate=(0.25, 0.5, 0.75))
MANY = {"num_experts": 32}

CLAIM = Claim(
    "Clusters of experts with dropout overfit less than a plain mixture.", ERROR, quantity="error",
    sides={"method": Side(few_data, {**MANY, "balance": VARIANCE}, {"lr": RATES, "router": ROUTERS}),
           "baseline": Side(few_data, {**MANY, **TOP2}, BALANCED)})
