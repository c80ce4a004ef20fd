"""Hydra: a branch on what goes in and one on what comes out adapt better than one branch of as many numbers.

Paper: Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning.
Tried: a net that reads digits, adapted to 200 turned ones under other names by a parallel and a sequential branch of
rank 1 each, against LoRA of rank 2; the matrices are square, so that both train as many numbers. Rate and scale are
chosen on both sides. Against it: an error that is no smaller.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims.adapters._turned import ERROR, RATES, adapted
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side

SCALES = (0.5, 1.0, 2.0)


def branched(bench: Bench, seed: int, *, lr: float, scale: float) -> dict[str, float]:
    """Error and numbers trained, with two branches."""
    return adapted(seed, "hydra", lr=lr, parallel=1, sequential=1, scale=scale)


def plain(bench: Bench, seed: int, *, lr: float, scale: float, **options: Any) -> dict[str, float]:
    """Error and numbers trained, with the parallel one alone."""
    return adapted(seed, "lora", lr=lr, rank=2, alpha=2 * scale, **options)


GRID = {"lr": RATES, "scale": SCALES}
CLAIM = Claim(
    "A parallel and a sequential branch adapt better than a parallel one of as many numbers.", ERROR, quantity="error",
    sides={"method": Side(branched, {}, GRID), "baseline": Side(plain, {}, GRID)})
