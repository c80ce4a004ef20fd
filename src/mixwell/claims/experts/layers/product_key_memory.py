"""Product-key memory: a large memory in place of a feed-forward block improves a language model at equal computation.

Paper: Large Memory Layers with Product Keys.
Tried: the bench's language model; in the second layer a memory of 4,096 values (64 keys a half, four heads of 16
values), against a dense block of width 107, which takes the same FLOPs; the first layer has that block in both. Against
it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import FINE, block, quality

MEMORY = {"method": "experts.layers.product_key_memory", "num_keys": 64, "k": 16, "heads": 4, "key_dim": 16}
BLOCK = block(107)

CLAIM = Claim(
    "A product-key memory beats the dense block of equal computation.", BITS,
    sides={"method": Side(quality, {"channel_mixer": [BLOCK, MEMORY]}, FINE),
           "baseline": Side(quality, {"mixer": BLOCK}, FINE)})
