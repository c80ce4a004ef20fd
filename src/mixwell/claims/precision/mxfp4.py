"""MXFP4: a power of two for each group of 32 leaves predictions closer than integers with one scale a row.

Paper: Microscaling Data Formats for Deep Learning.
Tried: the bench's mixture after 150,000 tokens, weighed on sixteen held-out windows; 4.25 bits against
four-bit integers row by row.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import rounded, trained

CLAIM = Claim("MXFP4 is closer than four-bit integers row by row.", "mean KL in nats a token", quantity="KL")


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of both."""
    before = trained(bench, seed)
    method = rounded(bench, before, seed, "mxfp4")
    baseline = rounded(bench, before, seed, "integers", group_size=0)
    return {"method": method, "baseline": baseline}
