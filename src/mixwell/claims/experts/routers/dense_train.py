"""DS-MoE: experts trained densely and run sparsely do better than experts trained as sparsely as they are run.

Paper: Dense Training, Sparse Inference: Rethinking Training of Mixture-of-Experts Language Models.
Tried: regression in sixteen clusters of unequal frequency, eight experts of which four serve a token at inference; all
eight in training with the mutual-information loss, against top-4 in training too with the Switch loss. Against it: a
held-out error that is no lower after the same 1,500 steps (dense steps cost twice as much).
"""

from __future__ import annotations

from mixwell.claims._judging import ERROR
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._synthetic import BALANCED, on_clusters
from mixwell.claims.grids import RATES, variants

SHARPENED = {"lr": RATES, "balance": variants({}, entropy=(0.01, 0.1, 1.0))}
TASK = {"zipf": 1.0, "steps": 1500}
DENSE = {**TASK, "router": {"method": "dense_train", "k": 4}}
SPARSE = {**TASK, "router": {"method": "top_k", "k": 4}}

CLAIM = Claim(
    "Dense training with sparse inference beats sparse training.", ERROR, quantity="error",
    sides={"method": Side(on_clusters, DENSE, SHARPENED), "baseline": Side(on_clusters, SPARSE, BALANCED)})
