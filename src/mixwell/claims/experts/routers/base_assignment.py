"""BASE: tokens assigned to experts in exactly equal numbers need no balance loss, and train better than Switch.

Paper: BASE Layers: Simplifying Training of Large, Sparse Models.
Tried: regression in sixteen equally frequent clusters in families of unequal size, which an even load fits; one of
eight experts; against Switch's top-1 with its balance loss. Against it: a held-out error that is no lower (the paper
reports lower perplexity than Switch, not only as good a one).
"""

from __future__ import annotations

from mixwell.claims._judging import ERROR
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._synthetic import BALANCED, FINE, TOP1, on_clusters

ASSIGNED = {"router": {"method": "base_assignment"}, "balance": {}, "families": True}

CLAIM = Claim(
    "Balanced assignment without a balance loss beats Switch routing with one.", ERROR, quantity="error",
    sides={"method": Side(on_clusters, ASSIGNED, FINE),
           "baseline": Side(on_clusters, {**TOP1, "families": True}, BALANCED)})
