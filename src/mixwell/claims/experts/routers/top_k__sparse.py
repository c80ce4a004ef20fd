"""Sparse gating: few whole experts a token do better than all experts a little, at the same computation.

Paper: A Survey on Mixture of Experts, which orders gating into sparse, dense and soft; on the method top_k.
Tried: regression in sixteen clusters of unequal frequency; top-2 of eight experts of width 32 against all of eight
experts of width 8 (dense gating, equal FLOPs). Against it: a held-out error that is no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import ERROR
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._synthetic import TOP2, on_clusters
from mixwell.claims.grids import RATES, finer, variants

EVERY = {"zipf": 1.0, "router": {"method": "top_k", "k": 8}, "balance": {}, "hidden_dim": 8}
COEFFICIENTS = variants({}, switch=(0.001, 0.01, 0.1))

CLAIM = Claim(
    "Sparse gating beats dense gating at equal compute.", ERROR, quantity="error",
    sides={"method": Side(on_clusters, {"zipf": 1.0, **TOP2}, {"lr": RATES, "balance": COEFFICIENTS}),
           "baseline": Side(on_clusters, EVERY, {"lr": finer(RATES, 9)})})
