"""CompeteSMoE: a router that learns from competitions between experts' responses trains better experts than top-k.

Paper: CompeteSMoE -- Effective Training of Sparse Mixture of Experts via Competition.
Tried: regression in sixteen clusters of unequal frequency, two of eight experts, 1,500 steps, a competition on 2, 5 or
15 steps of a hundred; against softmax top-2 with the same balance loss. Against it: a held-out error that is no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import ERROR
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._synthetic import FINE, TOP2, on_clusters
from mixwell.claims.grids import RATES, variants

COMPETING = {"lr": RATES, "router": variants({"method": "competition", "k": 2}, rate=(0.02, 0.05, 0.15))}
TASK = {**TOP2, "zipf": 1.0, "steps": 1500}

CLAIM = Claim(
    "Competition trains a better mixture than softmax top-k.", ERROR, quantity="error",
    sides={"method": Side(on_clusters, TASK, COMPETING), "baseline": Side(on_clusters, TASK, FINE)})
