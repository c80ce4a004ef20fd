"""Block tensor trains: with their own rates they learn more than dense maps of equal FLOPs.

Paper: Compute Better Spent: Replacing Dense Layers with Structured Matrices.
Tried: the next byte of the standard library's docstrings from the eight before it, two feed-forward blocks of width 64;
block tensor trains of rank 1 and hidden width 256, against dense blocks of width 48, which take the same FLOPs; 200
steps, learning rates of both tuned alike. Beside: the same trains without rates of their own.
Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.claims._bytes import BITS, RATES, bits, learnt
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side

DENSE = {"method": "swiglu", "hidden_dim": 48}


def trains(**options: Any) -> dict[str, Any]:
    """Feed-forwards of block tensor trains."""
    return {"method": "structured", "hidden_dim": 256, "structure": {"method": "block_tensor_train", **options}}


def measure(bench: Bench, seed: int, *, mixer: Mapping[str, Any], lr: float) -> float:
    """Bits per byte after training."""
    model = learnt(seed, mixer, steps=200, lr=lr)
    return bits(model)


CLAIM = Claim(
    "Block tensor trains with rates of their own beat dense maps of equal FLOPs.", BITS,
    sides={"method": Side(measure, {"mixer": trains()}, {"lr": RATES}),
           "baseline": Side(measure, {"mixer": DENSE}, {"lr": RATES}),
           "one rate": Side(measure, {"mixer": trains(rates=False)}, {"lr": RATES})})
