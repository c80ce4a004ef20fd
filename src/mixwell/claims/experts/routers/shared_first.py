"""An always-on first expert: a dense model tuned as such a mixture learns more than one tuned as top-2 of copies.

Paper: XFT: Unlocking the Power of Code Instruction Tuning by Simply Merging Upcycled Mixture-of-Experts.
Tried: the bench's dense model, width 64, upcycled to eight experts and tuned on 60,000 tokens with the first expert on
and five of the others, against two of eight by plain top-k. Three times the feed-forward FLOPs stand against that.
Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._conversions import bits, dense_start, made, tuned
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim

CLAIM = Claim("Six of eight with one always on learn more than two of eight.", BITS)
SIDES = {"method": {"method": "shared_first", "routed": 5}, "baseline": {"method": "top_k", "k": 2}}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte of each mixture after tuning."""
    before = dense_start(bench, seed, 64)
    found = {}
    for side, router in SIDES.items():
        upcycled = made(bench, "upcycle", before, seed, {"router": router})
        found[side] = bits(bench, tuned(bench, upcycled, seed))
    return found
