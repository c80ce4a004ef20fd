"""Switch Transformers: a top-1 mixture learns faster than a dense model of the same computation.

Paper: Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity.
Tried: the bench's language model, one of eight experts of width 64 a token, against a dense block of width 64, after
the same 600,000 tokens and FLOPs. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import BALANCED, FINE, SWITCH, block, quality

TOKENS = 600_000

CLAIM = Claim(
    "A top-1 mixture beats a dense model of equal compute.", BITS,
    sides={"method": Side(quality, {"mixer": SWITCH, "tokens": TOKENS}, BALANCED),
           "baseline": Side(quality, {"mixer": block(64), "tokens": TOKENS}, FINE)})
