"""float16 weights leave predictions closer than eight-bit ones.

Paper: Mixed Precision Training.
Tried: the bench's mixture after 150,000 tokens, weighed on sixteen held-out windows; against eight-bit
integers row by row, which are half as large.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import rounded, trained

CLAIM = Claim("float16 is closer than eight bits.", "mean KL in nats a token", quantity="KL")


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of both."""
    before = trained(bench, seed)
    method = rounded(bench, before, seed, "half")
    baseline = rounded(bench, before, seed, "integers", bits=8, group_size=0)
    return {"method": method, "baseline": baseline}
