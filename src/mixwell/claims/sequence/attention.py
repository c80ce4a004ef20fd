"""Grouped-query attention: heads that share keys and values in groups come close to attention with keys for each head.

Paper: GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints.
Tried: the bench's language model with eight heads and dense blocks of width 64, its attention started anew; two key and
value heads, a quarter of the cache, against eight; a single one (multi-query) beside. Trained so from the start, not
from a checkpoint of eight. Against it: bits per byte more than 1 % higher.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import RATES, block, quality

MODEL = {"mixer": block(64), "num_heads": 8, "swapped": "sequence_mixer"}
HEADS = {"method": 2, "baseline": 8, "multi-query": 1}

CLAIM = Claim(
    "Grouped keys and values are within 1 % of separate ones.", BITS, at_least=-0.01, relative=True,
    sides={name: Side(quality, {**MODEL, "num_kv_heads": heads}, {"lr": RATES}) for name, heads in HEADS.items()})
