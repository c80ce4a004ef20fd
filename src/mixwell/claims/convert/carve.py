"""Carving by what fires together: the model loses less than by a random split, before anything is trained.

Paper: CMoE: Fast Carving of Mixture-of-Experts for Efficient LLM Inference.
Tried: the bench's dense model, width 256, as one shared and seven routed experts of which three are active; bits per
byte right after carving by coactivation with its analytical router, against a random split with a random router of as
many active units. Beside: the split by gradients of LLaMA-MoE v2 with its centroids. Against it: bits per byte that are
no lower.
"""

from __future__ import annotations

from mixwell.claims._conversions import bits, dense_start, made
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim

CLAIM = Claim("Units carved by what fires together lose less than at random.", BITS)
SIDES = {
    "method": {"split": "coactivation"},
    "baseline": {"split": "random"},
    "gradient": {"split": "gradient", "start": "centroids"},
}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte of the carved model by each split."""
    before = dense_start(bench, seed)
    found = {}
    for side, options in SIDES.items():
        shape = {"num_experts": 7, "shared": 1, "router": {"k": 3}}
        carved = made(bench, "carve", before, seed, shape | options)
        found[side] = bits(bench, carved)
    return found
