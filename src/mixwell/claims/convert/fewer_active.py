"""Fewer active experts: leaving out each token's second expert costs less than leaving out half of the experts.

Paper: Not All Experts are Equal: Efficient Expert Pruning and Skipping for Mixture-of-Experts Large Language Models.
Tried: the bench's mixture of eight experts, two a token; bits per byte with one a token, its weight made 1, against
four experts pruned by frequency. Beside: one a token with its weight as it was. Against it: bits per byte that are no
lower.
"""

from __future__ import annotations

from mixwell.claims._conversions import bits, made, mixture_start
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim

CLAIM = Claim("Skipping the second expert costs less than pruning half of them.", BITS)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte of each smaller model."""
    before = mixture_start(bench, seed)
    skipped = made(bench, "fewer_active", before, seed, {"k": 1})
    plain = made(bench, "fewer_active", before, seed, {"k": 1, "renormalise": False})
    pruned = made(bench, "prune", before, seed, {"criterion": "frequency"})
    return {"method": bits(bench, skipped), "baseline": bits(bench, pruned), "weights kept": bits(bench, plain)}
