"""Sums of Kronecker products: convolutions with a quarter of the numbers beat narrower ones of as many.

Paper: PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex Convolutions.
Tried: handwritten digits, 300 of them to learn from, three convolutions 3 x 3 of 16 and 32 channels with batch norms,
the first dense; the second and third as sums of four products with a learned algebra, against dense ones of fewer
channels and as many numbers; learning rates tuned alike. Beside: the full dense net, and the quaternions' algebra.
Against it: an accuracy that is no higher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.precision._digit_nets import accuracy, descend, digits
from mixwell.core.rng import generator
from mixwell.mixing import build_structured

RATES = (1e-3, 3e-3, 1e-2)
STEPS, TRAINING = 120, 300
CHANNELS = (16, 32)
NARROW = (12, 15)  # (12 + 15) * 15 * 9 = 3,645 numbers, against 2 * 64 + (16 + 32) * 32 * 9 / 4 = 3,584


class Convolutions(nn.Module):
    """Three convolutions with batch norms and ReLU, a pooling between, the mean over places, ten scores."""

    def __init__(self, seed: int, channels: tuple[int, int], algebra: Mapping[str, Any] | None) -> None:
        super().__init__()
        draws = generator(seed, "convolutions")
        narrow, wide = channels
        dense = {"terms": 1}
        first = {"method": "kronecker_sum", "kernel": 3, **dense}
        later = {**first, **(algebra or dense)}
        plan = [(first, narrow, 1), (later, wide, narrow), (later, wide, wide)]
        self.maps: Any = nn.ModuleList()
        self.norms = nn.ModuleList()
        for spec, outputs, inputs in plan:
            columns = inputs * 9
            made = build_structured(spec, [(outputs, columns)], draws, (2 / columns) ** 0.5)
            self.maps.append(made[0])
            self.norms.append(nn.BatchNorm2d(outputs))
        head = torch.randn(10, wide, generator=draws)
        self.head = nn.Parameter(head * wide**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [N, 10] of images [N, 64]."""
        x = x.view(-1, 1, 8, 8)
        for place, (one, norm) in enumerate(zip(self.maps, self.norms)):
            x = one.convolve(x, padding=1)
            x = norm(x).relu()
            if place == 1:
                x = F.max_pool2d(x, 2)
        pooled = x.mean((2, 3))
        return pooled @ self.head.T

    def penalty(self) -> Tensor:
        """Nothing is added to the loss."""
        return torch.zeros(())

    def after_step(self) -> None:
        """No map follows the steps."""


def measure(bench: Bench, seed: int, *, lr: float, channels: tuple[int, int] = CHANNELS,
            algebra: Mapping[str, Any] | None = None) -> float:
    """Accuracy after training."""
    data = digits(seed, TRAINING)
    model = Convolutions(seed, channels, algebra)
    trained = descend(model, data, seed, steps=STEPS, lr=lr)
    return accuracy(trained, data)


CLAIM = Claim(
    "A learned algebra with a quarter of the numbers beats narrower convolutions.",
    "share of test images that are right", lower_is_better=False,
    sides={"method": Side(measure, {"algebra": {"terms": 4}}, {"lr": RATES}),
           "baseline": Side(measure, {"channels": NARROW}, {"lr": RATES}),
           "dense": Side(measure, {}, {"lr": RATES}),
           "quaternions": Side(measure, {"algebra": {"terms": 4, "algebra": "hamilton"}}, {"lr": RATES})})
