"""AWQ: scaling channels by their inputs before rounding leaves predictions closer.

Paper: AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration.
Tried: the bench's mixture after 150,000 tokens, weighed on sixteen held-out windows; three bits in groups of
32 with zero points, against rounding to nearest.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import rounded, trained

CLAIM = Claim("AWQ at three bits is closer than rounding to nearest.", "mean KL in nats a token", quantity="KL")


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of both."""
    before = trained(bench, seed)
    method = rounded(bench, before, seed, "awq", bits=3, group_size=32)
    baseline = rounded(bench, before, seed, "integers", bits=3, group_size=32, symmetric=False)
    return {"method": method, "baseline": baseline}
