"""Integers in groups: a scale for each 64 numbers leaves predictions closer than one for each row.

Paper: The case for 4-bit precision: k-bit Inference Scaling Laws.
Tried: the bench's mixture after 150,000 tokens, weighed on sixteen held-out windows; three bits, groups of
32 against whole rows.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import rounded, trained

CLAIM = Claim("Groups are closer than whole rows.", "mean KL in nats a token", quantity="KL")


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of both."""
    before = trained(bench, seed)
    method = rounded(bench, before, seed, "integers", bits=3, group_size=32)
    baseline = rounded(bench, before, seed, "integers", bits=3, group_size=0)
    return {"method": method, "baseline": baseline}
