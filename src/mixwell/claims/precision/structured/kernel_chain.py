"""Chains of filters: a wave's surrogate of separable kernels errs less than a narrower one of as many numbers.

Paper: A priori compression of convolutional neural networks for wave simulators.
Tried: a wave on a square of 20 x 20 cells by finite differences, from random bumps; two frames four steps apart, the
increment of the next four to be predicted; three convolutions 5 x 5 of 16 channels as chains, against full kernels of
fewer channels and as many numbers; 200 steps, learning rates of both tuned alike. Beside: the full net of 16 channels.
Against it: an error that is no lower, or one that is more than twice the full net's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.core.rng import generator
from mixwell.mixing import build_structured

CELLS, BUMPS, APART = 20, 3, 4
STEPS, BATCH = 200, 16
KERNEL = 5
BEND = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])  # the Laplacian
RATES = (1e-3, 3e-3, 1e-2)
CHAIN: Mapping[str, Any] = {"method": "kernel_chain", "kernel": (KERNEL, KERNEL)}
FULL: Mapping[str, Any] = {"method": "kronecker_sum", "terms": 1, "kernel": KERNEL}
# numbers: chains 16 (2 + 10) + 16 (16 + 10) + (16 + 10) = 634; full kernels of 4: 25 (8 + 16 + 4) = 700


def waves(seed: int, name: str, count: int) -> tuple[Tensor, Tensor]:
    """(two frames [B, 2, S, S], the increment of the next [B, 1, S, S]) of waves on their way."""
    draws = generator(seed, name)
    line = torch.linspace(0, 1, CELLS)
    now = torch.zeros(count, CELLS, CELLS)
    for _ in range(BUMPS):
        x, y = torch.rand(2, count, 1, 1, generator=draws)
        across = line[:, None] - x
        along = line - y
        away = across.square() + along.square()
        height = torch.randn(count, 1, 1, generator=draws)
        bump = torch.exp(-60 * away)
        now = now + height * bump
    frames = [now]
    before = now
    for _ in range(3 * APART):
        before, now = now, _later(before, now)
        frames.append(now)
    start = int(torch.randint(APART + 1, (1,), generator=draws))
    first, second, third = frames[start::APART][:3]
    seen = torch.stack([first, second], 1)
    ahead = third - second
    return seen, ahead.unsqueeze(1)


def _later(before: Tensor, now: Tensor) -> Tensor:
    """One step of the wave equation with ends held at zero, a quarter of a cell's square a step's."""
    bend = nn.functional.conv2d(now[:, None], BEND[None, None], padding=1)
    steady = 2 * now - before
    return steady + 0.25 * bend[:, 0]


class Surrogate(nn.Module):
    """Three convolutions with biases, ReLU between them."""

    def __init__(self, seed: int, channels: int, spec: Mapping[str, Any]) -> None:
        super().__init__()
        draws = generator(seed, "surrogate")
        self.maps: Any = nn.ModuleList()
        self.biases = nn.ParameterList()
        for outputs, inputs in ((channels, 2), (channels, channels), (1, channels)):
            columns = inputs * KERNEL**2
            shape = outputs, columns
            std = (2 / columns) ** 0.5
            made = build_structured(spec, [shape], draws, std)
            self.maps.append(made[0])
            bias = torch.zeros(outputs, 1, 1)
            self.biases.append(bias)

    def forward(self, x: Tensor) -> Tensor:
        """The increment [B, 1, S, S]."""
        margin = KERNEL // 2
        for place, (one, bias) in enumerate(zip(self.maps, self.biases)):
            if place:
                x = x.relu()
            x = one.convolve(x, padding=margin)
            x = x + bias
        return x


def measure(bench: Bench, seed: int, *, lr: float, channels: int = 16, spec: Mapping[str, Any] = FULL) -> float:
    """Squared error on new waves, a share of the increments' square."""
    model = Surrogate(seed, channels, spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        x, y = waves(seed, f"batch {step}", BATCH)
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    x, y = waves(seed, "new", 128)
    with torch.no_grad():
        missed = (model(x) - y).square().mean()
    return float(missed / y.square().mean())


CLAIM = Claim(
    "Separable kernels err less than fewer full ones of as many numbers.", "squared error, share of the increments'",
    provided=(no_worse(margin=1.0, baseline="full"),),
    sides={"method": Side(measure, {"spec": CHAIN}, {"lr": RATES}),
           "baseline": Side(measure, {"channels": 4}, {"lr": RATES}),
           "full": Side(measure, {}, {"lr": RATES})})
