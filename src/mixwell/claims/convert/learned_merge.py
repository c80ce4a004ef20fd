"""XFT: a dense model tuned as a mixture and merged back is better than one tuned as it is.

Paper: XFT: Unlocking the Power of Code Instruction Tuning by Simply Merging Upcycled Mixture-of-Experts.
Tried: the bench's dense model, width 64, upcycled to eight experts, the first always on and five of the others, tuned
on 60,000 tokens and merged, against plain tuning on the same tokens. The mixture spends six times the feed-forward
FLOPs, which the claim leaves out of account as the paper does. Beside: even weights. Against it: bits per byte that are
no lower.
"""

from __future__ import annotations

from mixwell.claims._conversions import bits, dense_start, made, tuned
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim

CLAIM = Claim("Tuning as a mixture and merging beats plain tuning.", BITS)
MIXTURE = {"num_experts": 8, "router": {"method": "shared_first", "routed": 5}}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte of the dense models that come out."""
    before = dense_start(bench, seed, 64)
    upcycled = made(bench, "upcycle", before, seed, MIXTURE)
    mixture = tuned(bench, upcycled, seed)
    learnt = made(bench, "learned_merge", mixture, seed, {"tokens": 8192})
    even = made(bench, "learned_merge", mixture, seed, {"passes": 0})
    plain = tuned(bench, before, seed)
    return {"method": bits(bench, learnt), "baseline": bits(bench, plain), "even": bits(bench, even)}
