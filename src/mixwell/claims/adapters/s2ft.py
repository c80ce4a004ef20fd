"""S2FT: slices of heads and channels learn as much as a LoRA of as many numbers, and more than they lose.

Paper: S^{2}FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity.
Tried: a small decoder that knows one domain of two-token rules, trained for 60 steps on another: slices of 2 of 8
heads and 26 of 128 channels against LoRA of rank 2 on all matrices (1,344 numbers against 1,792), at rates of their
own. Nats on the new domain. Beside: nats on the old one, and full training. Against it: nats on the new domain that
are no lower than LoRA's.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims.adapters._chains import NATS, RATES, Chain, base, both, fitted
from mixwell.claims.adapters._turned import attached
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side

STEPS = 60


def measure(bench: Bench, seed: int, *, lr: float, method: str = "", **options: Any) -> dict[str, float]:
    """Nats on both domains, and the numbers trained."""
    model = base(seed)
    numbers = model.num_parameters()
    if method:
        targets = "all-linear" if method == "lora" else "*"
        numbers = attached(model, method, seed, targets, **options).num_parameters
    new = Chain(seed, 1)
    fitted(model, [new], STEPS, lr, seed + 1)
    found = both(model, seed)
    return {**found, "numbers": float(numbers)}


GRID = {"lr": (3e-3, 1e-2, 3e-2)}
CLAIM = Claim(
    "Trained slices learn more than a LoRA of as many numbers.", f"{NATS} of the new domain", quantity="new",
    sides={"method": Side(measure, {"method": "s2ft", "out": 0.25, "down": 0.2}, GRID),
           "baseline": Side(measure, {"method": "lora", "rank": 2, "alpha": 2.0}, GRID),
           "full": Side(measure, {}, {"lr": RATES})})
