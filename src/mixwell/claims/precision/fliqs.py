"""Widths that a policy finds while the weights train lose less than one width trained as long.

Paper: FLIQS: One-Shot Mixed-Precision Floating-Point and Integer Quantization Search.
Tried: the bench's mixture after 150,000 tokens, trained 60 steps more in draws of 2, 3 or 4 bits a matrix and expert,
3 on average, against 60 steps in 3 bits everywhere; three rates of the weights tried for both, the policy's own
constants as they stand. Not tried: floats, and networks of images.
Against it: a loss on sixteen held-out windows that is no lower.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.precision._weighing import rounded, trained

RATES = (1e-4, 3e-4, 1e-3)
SEARCH: dict[str, Any] = {"steps": 60, "rows": 16, "group_size": 32, "bits_per_weight": 3.0, "policy_lr": 0.1}


def measure(bench: Bench, seed: int, **options: Any) -> dict[str, float]:
    """KL and rise of the loss after the training."""
    before = trained(bench, seed)
    settings = SEARCH | options
    return rounded(bench, before, seed, "fliqs", **settings)


SIDES = {"method": Side(measure, {"widths": (2, 3, 4)}, {"lr": RATES}),
         "baseline": Side(measure, {"widths": (3,)}, {"lr": RATES})}
CLAIM = Claim("Widths found in training lose less than one width trained as long.", "rise of the loss, nats a token",
              quantity="rise", sides=SIDES)
