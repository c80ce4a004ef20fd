"""Switch Transformers: the balance loss keeps the share of dropped tokens low; without it experts overflow.

Paper: Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity.
Tried: regression in sixteen equally frequent clusters, one of eight experts, capacity factor 1.25, the loss against
none; share of fresh tokens dropped. Against it: a share that is no lower, or an error more than 5 % higher.
"""

from __future__ import annotations

from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.experts._synthetic import TOP1, on_clusters
from mixwell.claims.grids import RATES, finer, variants

LAYER = {**TOP1, "capacity_factor": 1.25}
WITH = {"lr": RATES, "balance": variants({}, switch=(0.003, 0.01, 0.03))}

CLAIM = Claim(
    "The balance loss keeps tokens from being dropped.", "share of tokens dropped", quantity="dropped",
    provided=(no_worse("error", 0.05),), tuned_by="error",
    sides={"method": Side(on_clusters, LAYER, WITH),
           "baseline": Side(on_clusters, {**LAYER, "balance": {}}, {"lr": finer(RATES, 9)})})
