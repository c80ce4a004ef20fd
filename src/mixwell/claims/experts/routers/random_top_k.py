"""THOR: experts drawn at random do better than a learnt Switch router.

Paper: Taming Sparsely Activated Transformer with Stochastic Experts.
Tried: the bench's language model, one expert a token drawn at random in training and the mean of all eight at inference
(eight times the compute then); against Switch's top-1. The paper's consistency loss, which takes two passes a token, is
not part of the router and is left out. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import BALANCED, FINE, SWITCH, quality

DRAWN = {"router": {"method": "random_top_k", "k": 1}}

CLAIM = Claim("Experts drawn at random beat a learnt Switch router.", BITS,
              sides={"method": Side(quality, {"mixer": DRAWN}, FINE),
                     "baseline": Side(quality, {"mixer": SWITCH}, BALANCED)})
