"""Factorised feed-forwards: at half the numbers a trained mixture loses less as BLAST than as low rank.

Paper: BLAST: Block-Level Adaptive Structured Matrices for Efficient Deep Neural Network Inference.
Tried: the bench's mixture after 150,000 tokens, weighed on sixteen held-out windows, nothing trained afterwards; maps
of 64 x 64 in four by four blocks of rank 14 against factors of rank 16. Beside: block tensor trains of rank 2.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import rounded, trained

CLAIM = Claim("BLAST is closer than low rank at half the numbers.", "mean KL in nats a token", quantity="KL")
SIDES = {  # numbers of a map of 4,096
    "method": {"method": "blast", "rank": 14, "blocks": 4, "steps": 150},  # 14 (128 + 16) = 2,016
    "baseline": {"method": "low_rank", "rank": 16},  # 16 * 128 = 2,048
    "trains": {"method": "block_tensor_train", "rank": 2},  # 2 * 2 * 8^3 = 2,048
}


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of all."""
    before = trained(bench, seed)
    found = {}
    for side, structure in SIDES.items():
        found[side] = rounded(bench, before, seed, "factorise", structure=structure)
    return found
