"""Minimal experts: a student with many of them is better than a dense one with as many active units.

Paper: Lifting the Curse of Capacity Gap in Distilling Language Models.
Tried: the bench's dense model, width 256, cut to four experts of 48 units of which one is active, then trained on
60,000 tokens, against its first 48 units alone, trained alike. Nothing is distilled from a teacher here. Against it:
bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._conversions import bits, dense_start, made, tuned
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim

CLAIM = Claim("Minimal experts beat a dense student of equal active width.", BITS)
SIDES = {
    "method": ("minimal_experts", {"hidden_dim": 48}),
    "baseline": ("mix_n_match", {"widths": 48}),
}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte of the students after training on."""
    before = dense_start(bench, seed)
    found = {}
    for side, (name, options) in SIDES.items():
        student = made(bench, name, before, seed, options)
        found[side] = bits(bench, tuned(bench, student, seed))
    return found
