"""Mixture of tokens: experts on weighted means over examples beat a dense block of equal FLOPs.

Paper: Mixture of Tokens: Efficient LLMs through Cross-Example Aggregation.
Tried: the bench's language model; 16 experts of width 64 on groups of eight examples, at three temperatures, against a
dense block of width 144, which takes the same FLOPs; top-2 of eight with the Switch loss beside. Against it: bits per
byte that are no lower than the dense block's.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.grids import variants
from mixwell.claims.language import BALANCED, FINE, RATES, block, quality

MIXED = {"method": "experts.layers.mixture_of_tokens", "num_experts": 16, "hidden_dim": 64}
MIXTURES = variants(MIXED, temperature=(0.3, 1.0, 3.0))

CLAIM = Claim(
    "Mixing tokens beats a dense block of equal FLOPs.", BITS,
    sides={"method": Side(quality, {}, {"lr": RATES, "mixer": MIXTURES}),
           "baseline": Side(quality, {"mixer": block(144)}, FINE), "top-2": Side(quality, {}, BALANCED)})
