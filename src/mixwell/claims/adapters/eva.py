"""EVA: a LoRA that starts along the variance of its inputs learns faster than one that starts at random.

Paper: One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation.
Tried: a net that reads digits, adapted for 25 steps to 200 turned ones under other names: ranks of 2 in the mean shared
out by explained variance, A along the components of these images, against a LoRA of rank 2 with random orthonormal rows
(as long as components are). Cross-entropy on other turned digits. Beside: LoRA's usual start. Against it: a
cross-entropy that is no smaller.
"""

from __future__ import annotations

from typing import Any

import torch

from mixwell.claims.adapters._turned import RATES, attached, base, images, nats, trained
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.core.rng import generator, normal

STEPS = 25


def measure(bench: Bench, seed: int, *, lr: float, start: str) -> float:
    """Cross-entropy after a few steps from a start of A."""
    net = base(seed)
    _, few, many = images(seed)
    if start == "eva":
        given: dict[str, Any] = {"text": few.x.split(50)}
        attached(net, "eva", seed, given=given, rank=2, alpha=2.0)
    else:
        there = attached(net, "lora", seed, rank=2, alpha=2.0)
        if start == "orthonormal":
            for adapter in there.adapters.values():
                _orthonormal(adapter.A, seed)
    trained(net, few, STEPS, lr)
    return nats(net, many)


@torch.no_grad()
def _orthonormal(A: torch.Tensor, seed: int) -> None:
    drawn = normal((A.shape[1], A.shape[0]), 1.0, generator(seed, "rows"))
    columns, _ = torch.linalg.qr(drawn)
    A.copy_(columns.T)


GRID = {"lr": RATES}
CLAIM = Claim(
    "A LoRA along the variance of its inputs learns faster than one along random directions.",
    "nats an image of held-out turned digits after 25 steps",
    sides={"method": Side(measure, {"start": "eva"}, GRID),
           "baseline": Side(measure, {"start": "orthonormal"}, GRID),
           "usual start": Side(measure, {"start": "usual"}, GRID)})
