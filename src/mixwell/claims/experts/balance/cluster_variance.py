"""MoEC: a loss on the variance of gates inside clusters of experts gives each expert more data to learn from.

Paper: MoEC: Mixture of Expert Clusters.
Tried: 512 noisy training tokens, regression in sixteen equally frequent clusters, 32 experts, two a token; four expert
clusters with the variance loss alone (no dropout) at three coefficients, against the Switch loss at three. Against it:
a held-out error that is no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import ERROR
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._synthetic import BALANCED, TOP2, few_data
from mixwell.claims.grids import RATES

LOSSES = [{"cluster_variance": {"coefficient": coefficient, "clusters": 4}} for coefficient in (0.01, 0.1, 1.0)]
MANY = {**TOP2, "num_experts": 32}

CLAIM = Claim(
    "The clusters' variance loss overfits less than the Switch loss.", ERROR, quantity="error",
    sides={"method": Side(few_data, MANY, {"lr": RATES, "balance": LOSSES}),
           "baseline": Side(few_data, MANY, BALANCED)})
