"""Bits by routing and error leave a mixture's predictions closer than the same bits everywhere.

Paper: Mixture Compressor for Mixture-of-Experts LLMs Gains More.
Tried: the bench's mixture after 150,000 tokens, weighed on sixteen held-out windows; 2, 3 or 4 bits a matrix and
expert, 3 on average, against 3 everywhere. Beside: the same program by the errors alone, routing left out.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import against_equal, mixed, trained

CLAIM = Claim("Bits by routing and error are closer than the same bits everywhere.", "mean KL in nats a token",
              quantity="KL")


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of all three."""
    before = trained(bench, seed)
    sides = against_equal(bench, before, seed, "expert_bits")
    sides["errors alone"] = mixed(bench, before, seed, "expert_bits", alpha=0.0, beta=0.0)
    return sides
