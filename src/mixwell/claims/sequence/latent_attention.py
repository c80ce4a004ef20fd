"""Latent attention: with a cache no wider than that of two key and value heads it comes close to attention with eight.

Paper: DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model.
Tried: the bench's language model on 200,000 tokens with eight heads and dense blocks of width 128; a latent of 24 and
4 turning channels (28 numbers of cache a position) against keys and values of every head (128 numbers); grouped
attention of two heads (32 numbers) beside. The paper says better than full heads, at a scale far from this one; here it
is asked to come within 1 %. Against it: bits per byte more than 1 % higher.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims._judging import BITS, beside, minus_share
from mixwell.claims.bench import Bench
from mixwell.claims.language import bits, dense
from mixwell.core.evidence import Evidence, weigh

TOKENS = 200_000
LATENT = {"method": "sequence.latent_attention", "kv_rank": 24, "nope_dim": 8, "rope_dim": 4, "value_dim": 8}


def with_mixer(bench: Bench, **options: Any) -> list[float]:
    """Bits per byte of eight query heads with these options."""
    arch = dense(bench, 128) | {"num_heads": 8} | options
    return bits(bench, arch, TOKENS)


def claim(bench: Bench) -> Evidence:
    """Bits per byte of a latent of 24 against keys and values for eight heads."""
    latent = with_mixer(bench, sequence_mixer=LATENT)
    full = with_mixer(bench, num_kv_heads=8)
    grouped = with_mixer(bench, num_kv_heads=2)
    evidence = weigh("A latent of 24 is within 1 % of keys and values for eight heads.", BITS, latent, full,
                     at_least=minus_share(full, 0.01))
    return beside(evidence, grouped=grouped)
