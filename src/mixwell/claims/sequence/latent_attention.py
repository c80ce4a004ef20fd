"""Latent attention: with a cache no wider than that of two key and value heads it comes close to attention with eight.

Paper: DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model.
Tried: the bench's language model with eight heads and dense blocks of width 64, its attention started anew; a latent of
24 and 4 turning channels (28 numbers of cache a position) against keys and values of every head (128 numbers); grouped
attention of two heads (32 numbers) beside. The paper says better than full heads, at a scale far from this one; here it
is asked to come within 1 %. Against it: bits per byte more than 1 % higher.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import RATES, block, quality

MODEL = {"mixer": block(64), "num_heads": 8, "swapped": "sequence_mixer"}
LATENT = {"method": "sequence.latent_attention", "kv_rank": 24, "nope_dim": 8, "rope_dim": 4, "value_dim": 8}
CHANGES: dict[str, dict[str, Any]] = {
    "method": {"sequence_mixer": LATENT}, "baseline": {"num_kv_heads": 8}, "grouped": {"num_kv_heads": 2}}

CLAIM = Claim(
    "A latent of 24 is within 1 % of keys and values for eight heads.", BITS, at_least=-0.01, relative=True,
    sides={name: Side(quality, {**MODEL, **changes}, {"lr": RATES}) for name, changes in CHANGES.items()})
