"""Expert choice: experts that pick their tokens train faster than tokens that pick their experts.

Paper: Mixture-of-Experts with Expert Choice Routing.
Tried: regression in sixteen equally frequent clusters in families of unequal size, which equal slots fit; eight
experts, two a token on average, the same slots for each expert; against top-2 with a balance loss and capacity factor 1
that drops what overflows, as in the paper's baseline. Against it: a held-out error after the same steps that is no
lower.
"""

from __future__ import annotations

from mixwell.claims._judging import ERROR
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._synthetic import BALANCED, FINE, TOP2, on_clusters

CHOICE = {"router": {"method": "expert_choice", "capacity_factor": 2.0}, "balance": {}, "families": True}
BOUND = {**TOP2, "capacity_factor": 1.0, "families": True}

CLAIM = Claim(
    "Expert choice reaches a lower loss than top-2 in the same steps.", ERROR, quantity="error",
    sides={"method": Side(on_clusters, CHOICE, FINE), "baseline": Side(on_clusters, BOUND, BALANCED)})
