"""MoS: at the numbers of a LoRA of rank one, factors put together from shared shards adapt better.

Paper: MoS: Unleashing Parameter Efficiency of Low-Rank Adaptation with Mixture of Shards.
Tried: a net of four equal hidden layers that reads digits, adapted to 200 turned ones under other names by MoS of rank
4 with the numbers of rank 1 (four shards a vector), against LoRA of rank 1. Beside: LoRA of rank 4, four times the
numbers. Against it: an error that is no smaller than that of rank 1.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims.adapters._turned import ERROR, RATES, adapted
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side


def measure(bench: Bench, seed: int, *, lr: float, method: str, **options: Any) -> dict[str, float]:
    """Error and numbers trained."""
    return adapted(seed, method, lr=lr, **options)


GRID = {"lr": RATES}
SHARDS = {"rank": 4, "budget": 1, "private": 0, "shards": 4, "alpha": 4.0}
CLAIM = Claim(
    "Shared shards adapt better than a LoRA of as many numbers.", ERROR, quantity="error",
    sides={"method": Side(measure, {"method": "mos", **SHARDS}, GRID),
           "baseline": Side(measure, {"method": "lora", "rank": 1, "alpha": 1.0}, GRID),
           "four times the numbers": Side(measure, {"method": "lora", "rank": 4, "alpha": 4.0}, GRID)})
