"""Importance and load losses: without them the gate favours a few experts, with them the load is even and quality up.

Paper: Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer.
Tried: regression in sixteen equally frequent clusters in families of unequal size, which an even load fits; top-2 of
eight experts, both losses at one of three coefficients against none; busiest expert's load on fresh tokens. Against it:
a load that is no more even, or an error more than 5 % higher.
"""

from __future__ import annotations

from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.experts._synthetic import FINE, TOP2, on_clusters
from mixwell.claims.grids import RATES, variants

WITH = {"lr": RATES, "balance": variants({}, importance_load=(0.01, 0.03, 0.1))}
TASK = {**TOP2, "families": True}

CLAIM = Claim(
    "Importance and load losses even out the experts.", "busiest expert's load over the mean load", quantity="load",
    provided=(no_worse("error", 0.05),), tuned_by="error",
    sides={"method": Side(on_clusters, TASK, WITH), "baseline": Side(on_clusters, {**TASK, "balance": {}}, FINE)})
