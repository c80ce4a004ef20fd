"""Asymmetry in LoRA: the factor that writes the outputs is worth training more than the one that reads the inputs.

Paper: Asymmetry in Low-Rank Adapters of Foundation Models.
Tried: a net that reads digits, adapted to 200 turned ones under other names by a change of rank 4 of which only B is
trained, against one of which only A is, at rates of their own; the matrices are square, so that both train as many
numbers. Beside: LoRA of rank 2, which trains as many in both factors. Against it: an error that is no smaller.
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
KEPT = {"method": "asymmetry", "rank": 4, "alpha": 4.0}
CLAIM = Claim(
    "Training B beside a kept A adapts better than training A beside a kept B.", ERROR, quantity="error",
    sides={"method": Side(measure, {**KEPT, "train": "B"}, GRID),
           "baseline": Side(measure, {**KEPT, "train": "A"}, GRID),
           "both factors": Side(measure, {"method": "lora", "rank": 2, "alpha": 2.0}, GRID)})
