"""Learned rounding leaves predictions closer than rounding to nearest.

Paper: Gradient-Based Post-Training Quantization: Challenging the Status Quo.
Tried: the bench's mixture after 150,000 tokens, weighed on sixteen held-out windows; three bits in groups of 32, 200
steps a matrix, against rounding to nearest on the same grids. Beside: GPTQ, the rival to beat.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import rounded, trained

CLAIM = Claim("Learned rounding is closer than rounding to nearest.", "mean KL in nats a token", quantity="KL")


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of all three."""
    before = trained(bench, seed)
    method = rounded(bench, before, seed, "learned_rounding", bits=3, group_size=32, steps=200)
    baseline = rounded(bench, before, seed, "integers", bits=3, group_size=32)
    rival = rounded(bench, before, seed, "gptq", bits=3, group_size=32)
    return {"method": method, "baseline": baseline, "gptq": rival}
