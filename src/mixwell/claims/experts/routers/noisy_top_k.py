"""Noisy top-k gating: the smooth estimate of the load that noise allows balances the experts when trained on.

Paper: Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer.
Tried: regression in sixteen equally frequent clusters in families of unequal size, which an even load fits; noisy top-2
of eight experts, load loss against none; busiest expert's load on fresh tokens without noise. Against it: a load that
is no more even, or an error more than 5 % higher (the paper reports a lower perplexity).
"""

from __future__ import annotations

from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.experts._synthetic import FINE, on_clusters
from mixwell.claims.grids import RATES, variants

GATE = {"method": "noisy_top_k", "k": 2}
TASK = {"balance": {}, "families": True}
WITH = {"lr": RATES, "router": variants(GATE, load=(0.01, 0.03, 0.1))}

CLAIM = Claim(
    "The load loss of noisy gating balances experts.", "busiest expert's load over the mean load", quantity="load",
    provided=(no_worse("error", 0.05),), tuned_by="error",
    sides={"method": Side(on_clusters, TASK, WITH),
           "baseline": Side(on_clusters, {**TASK, "router": {**GATE, "load": 0.0}}, FINE)})
