"""One student of all experts: gathered and distilled, it is better than the most used expert alone.

Paper: One Student Knows All Experts Know: From Sparse to Dense.
Tried: the bench's mixture of eight experts made dense, then 60,000 tokens more; gathered by units of largest norm and
distilled twice over 8192 tokens, against the most used expert kept alone, distilled by nothing. Beside: the mean.
Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._conversions import bits, made, mixture_start, tuned
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim

CLAIM = Claim("A student gathered from all experts beats the most used one.", BITS)
SIDES = {
    "method": ("densify", {"how": "top_k", "passes": 2, "tokens": 8192}),
    "baseline": ("prune", {"criterion": "frequency", "keep": 1}),
    "mean": ("densify", {"how": "mean", "passes": 2, "tokens": 8192}),
}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte of each dense model after training on."""
    before = mixture_start(bench, seed)
    found = {}
    for side, (name, options) in SIDES.items():
        student = made(bench, name, before, seed, options)
        found[side] = bits(bench, tuned(bench, student, seed))
    return found
