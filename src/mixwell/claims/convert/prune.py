"""Pruning by REAP: half of the experts go at less cost than by how often they are chosen.

Paper: REAP the Experts: Why Pruning Prevails for One-Shot MoE compression.
Tried: the bench's mixture of eight experts, four of which go; bits per byte right after, against frequency. Beside:
the router's score of Task-Specific Expert Pruning for Sparse Mixture-of-Experts, and the mean output norm. Against it:
bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._conversions import bits, made, mixture_start
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim

CLAIM = Claim("REAP's criterion keeps more than frequency.", BITS)
SIDES = {"method": "reap", "baseline": "frequency", "score": "score", "output norm": "output_mean"}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte of the model with half of its experts by each criterion."""
    before = mixture_start(bench, seed)
    found = {}
    for side, criterion in SIDES.items():
        pruned = made(bench, "prune", before, seed, {"criterion": criterion})
        found[side] = bits(bench, pruned)
    return found
