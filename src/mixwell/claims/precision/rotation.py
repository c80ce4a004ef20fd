"""Rotation: turning the residual stream before rounding leaves predictions closer.

Paper: QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs.
Tried: the bench's mixture after 150,000 tokens, weighed on sixteen held-out windows; four bits for weights
in groups of 32 and for inputs, against the same without a rotation.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import rounded, trained

CLAIM = Claim(
    "A rotation is closer than rounding weights and inputs as they are.",
    "mean KL in nats a token", quantity="KL")


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of both."""
    before = trained(bench, seed)
    method = rounded(bench, before, seed, "rotation", group_size=32, input_bits=4)
    baseline = rounded(bench, before, seed, "integers", group_size=32, input_bits=4)
    return {"method": method, "baseline": baseline}
