"""Bits by what masked rounding does to a model's own text leave predictions closer than the same bits everywhere.

Paper: OHQ: On-chip Hardware-aware Quantization.
Tried: the bench's mixture after 150,000 tokens, weighed on sixteen held-out windows; 2, 3 or 4 bits a matrix and
expert, 3 on average, on 512 tokens that the model writes, against 3 everywhere. Times are left out (beta 0): what a
busy machine measures would decide otherwise each time. Not tried: how much faster the result is.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import against_equal, trained

CLAIM = Claim("Bits by masked rounding are closer than the same bits everywhere.", "mean KL in nats a token",
              quantity="KL")


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of both."""
    before = trained(bench, seed)
    return against_equal(bench, before, seed, "ohq", tokens=512, beta=0.0)
