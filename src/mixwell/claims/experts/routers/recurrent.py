"""RMoE: a recurrent cell that carries the routing over depth gives better language models than a router per layer.

Paper: Layerwise Recurrent Router for Mixture-of-Experts.
Tried: the bench's language model with four layers, top-2 of eight experts, a state of width 32; against a linear router
in each layer with the same balance losses. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import DEEP, RATES, quality

CELL = {"router": {"method": "recurrent", "k": 2, "state_dim": 32}}

CLAIM = Claim("A recurrent router beats linear routers.", BITS,
              sides={"method": Side(quality, {"mixer": CELL, **DEEP}, {"lr": RATES}),
                     "baseline": Side(quality, DEEP, {"lr": RATES})})
