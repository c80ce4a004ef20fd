"""SMILE: choosing a node and then an expert inside it loses nothing against Switch routing over all experts at once.

Paper: SMILE: Scaling Mixture-of-Experts with Efficient Bi-level Routing.
Tried: the bench's language model, eight experts as two nodes of four, one expert a token, three coefficients of its two
balance losses; against Switch's top-1 with three of its own. Against it: more than one per cent more bits per byte. The
paper's gain in throughput comes from its network and is not tried here.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import BALANCED, RATES, SWITCH, quality

ROUTERS = [{"method": "bi_level", "k": 1, "nodes": 2, "node_balance": weight, "local_balance": weight}
           for weight in (0.002, 0.005, 0.015)]
MIXERS = [{"router": router, "balance": {}} for router in ROUTERS]

CLAIM = Claim(
    "Bi-level routing stays within one per cent of Switch routing.", BITS, at_least=-0.01, relative=True,
    sides={"method": Side(quality, {}, {"lr": RATES, "mixer": MIXERS}),
           "baseline": Side(quality, {"mixer": SWITCH}, BALANCED)})
