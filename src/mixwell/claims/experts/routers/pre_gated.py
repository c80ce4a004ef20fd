"""Read-ME: routers of different layers are redundant, so that one decision before the first layer serves them all.

Paper: Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System Co-Design.
Tried: the bench's language model with four layers, top-2 of eight experts; one decision for all layers against a router
in each. Against it: more than one per cent more bits per byte. The paper distils its router from a dense model; here it
is trained with the rest.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import DEEP, RATES, quality

ONCE = {"router": {"method": "pre_gated", "k": 2, "ahead": "all"}}

CLAIM = Claim(
    "One routing decision for all layers costs at most one per cent.", BITS, at_least=-0.01, relative=True,
    sides={"method": Side(quality, {"mixer": ONCE, **DEEP}, {"lr": RATES}),
           "baseline": Side(quality, DEEP, {"lr": RATES})})
