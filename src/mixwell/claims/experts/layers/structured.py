"""Low-rank feed-forwards: wide ones learn more than dense ones of equal FLOPs.

Paper: Investigating Low-Rank Training in Transformer Language Models: Efficiency and Scaling Analysis.
Tried: the next byte of the standard library's docstrings from the eight before it, two feed-forward blocks of width 64;
hidden width 192 in factors of rank 16, against dense blocks of width 64, which take the same FLOPs; 300 steps, learning
rates of both tuned alike. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.claims._bytes import BITS, RATES, bits, learnt
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side

WIDE = {"method": "structured", "hidden_dim": 192, "structure": {"method": "low_rank", "rank": 16}}
DENSE = {"method": "swiglu", "hidden_dim": 64}


def measure(bench: Bench, seed: int, *, mixer: Mapping[str, Any], lr: float) -> float:
    """Bits per byte after training."""
    model = learnt(seed, mixer, lr=lr)
    return bits(model)


CLAIM = Claim(
    "Wide low-rank feed-forwards beat dense ones of equal FLOPs.", BITS,
    sides={"method": Side(measure, {"mixer": WIDE}, {"lr": RATES}),
           "baseline": Side(measure, {"mixer": DENSE}, {"lr": RATES})})
