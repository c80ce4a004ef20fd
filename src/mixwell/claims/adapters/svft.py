"""SVFT: with fewer trained numbers than the smallest LoRA, coefficients between singular vectors adapt as well.

Paper: SVFT: Parameter-Efficient Fine-Tuning with Singular Vectors.
Tried: a net that reads digits, adapted to 200 turned ones under other names by plain SVFT (64 singular values and a
gate a layer), against LoRA of rank one with twice the numbers, at rates of their own. Beside: SVFT with a band of one
on each side. Against it: an error that is larger by more than 0.02.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims.adapters._turned import ERROR, RATES, adapted
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side

OWN_RATES = (1e-2, 3e-2, 1e-1, 3e-1)


def measure(bench: Bench, seed: int, *, lr: float, method: str, **options: Any) -> dict[str, float]:
    """Error and numbers trained."""
    return adapted(seed, method, lr=lr, **options)


CLAIM = Claim(
    "Half of the numbers of the smallest LoRA, between singular vectors, adapt as well.", ERROR, quantity="error",
    at_least=-0.02,
    sides={"method": Side(measure, {"method": "svft"}, {"lr": OWN_RATES}),
           "baseline": Side(measure, {"method": "lora", "rank": 1, "alpha": 1.0}, {"lr": RATES}),
           "band of one": Side(measure, {"method": "svft", "band": 1}, {"lr": OWN_RATES})})
