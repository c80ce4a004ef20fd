"""Layer-wise distillation: experts taught to give what their block gave lose less than a plain split.

Paper: LaDiMo: Layer-wise Distillation Inspired MoEfier.
Tried: the bench's dense model, width 256, as eight slices of which two are active, taught on 8192 tokens in four
passes, against the same slices behind a random router. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.claims._conversions import bits, dense_start, made
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim

CLAIM = Claim("Experts taught layer by layer lose less than slices.", BITS)
SIDES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "method": ("layerwise", {"passes": 4, "tokens": 8192}),
    "baseline": ("carve", {"split": "order"}),
}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte of the model with eight experts, taught and not."""
    before = dense_start(bench, seed)
    found = {}
    for side, (name, options) in SIDES.items():
        experts = made(bench, name, before, seed, options)
        found[side] = bits(bench, experts)
    return found
