"""FLoRA: a core between two thin factors adapts better than the factors alone, at as many numbers.

Paper: FLoRA: Low-Rank Core Space for N-dimension.
Tried: a net that reads digits, adapted to 200 turned ones under other names by a core of 4 by 4 between two factors
(528 numbers a layer), against LoRA of rank 4 (512); rate and scale are chosen on both sides. The paper's case of
kernels with more axes than two is not tried. Against it: an error that is no smaller.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims.adapters._turned import ERROR, RATES, adapted
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side

SCALES = (1.0, 4.0, 16.0)


def cored(bench: Bench, seed: int, *, lr: float, scale: float) -> dict[str, float]:
    """Error and numbers trained, with a core."""
    return adapted(seed, "flora", lr=lr, rank_in=4, rank_out=4, scale=scale)


def plain(bench: Bench, seed: int, **options: Any) -> dict[str, float]:
    """Error and numbers trained, without."""
    return adapted(seed, "lora", rank=4, **options)


CLAIM = Claim(
    "A core between two thin factors adapts better than a LoRA of as many numbers.", ERROR, quantity="error",
    sides={"method": Side(cored, {}, {"lr": RATES, "scale": SCALES}),
           "baseline": Side(plain, {}, {"lr": RATES, "alpha": SCALES})})
