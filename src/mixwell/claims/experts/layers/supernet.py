"""Supernet block: the narrowest width is better where it mixes weights of its own than where it shares one with all.

Paper: Mixture-of-Supernets: Improving Weight-Sharing Supernet Training with Architecture-Routed Mixture-of-Experts.
Tried: the bench's decoder with blocks of width 256 trained at widths 256, 128 and 64 in turn for 200,000 tokens, four
weights mixed by layer, against one weight for all; bits per byte of the dense model of width 64. Against it: no fewer.
"""

from __future__ import annotations

from mixwell.claims._conversions import TOKENS, bits, made
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim

CLAIM = Claim("The narrowest width gains by mixing weights of its own.", BITS)
NARROWEST = 64


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte of the narrowest model of each side."""
    mixed = narrowest(bench, seed, 4)
    shared = narrowest(bench, seed, 1)
    return {"method": mixed, "baseline": shared}


def narrowest(bench: Bench, seed: int, weights: int) -> float:
    """Of the dense model folded out of a training with so many weights."""
    mixer = {"method": "experts.layers.supernet", "hidden_dim": 256, "factors": [1, 2, 4], "router_dim": 32,
             "weights": weights, "by": "layer"}
    trained = bench.train(bench.arch(channel_mixer=mixer), seed, tokens=TOKENS)
    folded = made(bench, "mixture_of_supernets", trained.model.to_checkpoint(), seed, {"widths": NARROWEST})
    return bits(bench, folded)
