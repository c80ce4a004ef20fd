"""Loss-free balancing: a bias that follows the load balances experts better than a loss, at no cost in quality.

Papers: Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts; DeepSeek-V3 Technical Report.
Tried: regression in sixteen equally frequent clusters in families of unequal size, which an even load fits; top-2 of
eight experts; the busiest expert's load on fresh tokens, against the Switch loss. Against it: a load that is no more
even, or an error more than 5 % higher.
"""

from __future__ import annotations

from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.experts._synthetic import BALANCED, TOP2, on_clusters
from mixwell.claims.grids import RATES, variants

ROUTERS = variants({"method": "loss_free_bias", "k": 2}, update_rate=(0.001, 0.003, 0.01))

CLAIM = Claim(
    "A bias balances better than a loss, at no cost.", "busiest expert's load over the mean load", quantity="load",
    provided=(no_worse("error", 0.05),), tuned_by="error",
    sides={"method": Side(on_clusters, {"families": True, "balance": {}}, {"lr": RATES, "router": ROUTERS}),
           "baseline": Side(on_clusters, {"families": True, **TOP2}, BALANCED)})
