"""CapaBoost: masked copies of one low-rank pair adapt better than the pair alone, at as many numbers.

Paper: Increasing Model Capacity for Free: A Simple Strategy for Parameter Efficient Fine-tuning.
Tried: a net that reads digits, adapted to 200 turned ones under other names by two copies of a pair of rank 2, half of
each masked, against LoRA of rank 2. Copies add up, so that rate and scale are chosen on both sides. Against it: an
error that is no smaller.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims.adapters._turned import ERROR, RATES, adapted
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side


def measure(bench: Bench, seed: int, *, lr: float, alpha: float, method: str, **options: Any) -> dict[str, float]:
    """Error and numbers trained."""
    return adapted(seed, method, lr=lr, rank=2, alpha=alpha, **options)


GRID = {"lr": RATES, "alpha": (1.0, 2.0, 4.0)}
CLAIM = Claim(
    "Masked copies of a low-rank pair adapt better than the pair.", ERROR, quantity="error",
    sides={"method": Side(measure, {"method": "capaboost", "copies": 2, "density": 0.5}, GRID),
           "baseline": Side(measure, {"method": "lora"}, GRID)})
