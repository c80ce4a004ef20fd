"""Merging experts by their outputs: it loses less than by their router's logits.

Paper: Retraining-Free Merging of Sparse MoE via Hierarchical Clustering.
Tried: the bench's mixture of eight experts merged into four by average linkage of mean outputs, against groups around
the most used ones by router logits (Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing Policy).
Beside: both with hidden units aligned. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.claims._conversions import bits, made, mixture_start
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim

CLAIM = Claim("Experts merged by their outputs lose less than by router logits.", BITS)
SIDES: Mapping[str, Mapping[str, Any]] = {
    "method": {"by": "outputs"},
    "baseline": {"by": "router"},
    "outputs aligned": {"by": "outputs", "align": True},
    "router aligned": {"by": "router", "align": True},
}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte of the merged models."""
    before = mixture_start(bench, seed)
    found = {}
    for side, options in SIDES.items():
        merged = made(bench, "merge_experts", before, seed, options)
        found[side] = bits(bench, merged)
    return found
