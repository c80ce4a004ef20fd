"""Gradient descent, once for all networks: a step, its rate, and the loop that draws a fresh loss for every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def update(optimizer: Optimizer, loss: Tensor, clip: float = math.inf) -> None:
    """One step down a scalar loss; the gradient's norm over all parameters is cut at `clip`."""
    optimizer.zero_grad()
    loss.backward()
    if math.isfinite(clip):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """The learning rate of the steps to come."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def cosine(step: int, steps: int, warm: int) -> float:
    """Share of the full learning rate at a step: up in a line over `warm` steps, down along a cosine over all."""
    rising = (step + 1) / warm
    angle = math.pi * step / steps
    falling = 0.5 * (1 + math.cos(angle))
    return min(rising, falling)


def descend(module: nn.Module, loss: Callable[[], Tensor], *, steps: int, lr: float,
            warm: int | None = None) -> Iterator[float]:
    """Adam on a loss that is drawn anew at every step; yields the loss of each.

    warm: steps until the full rate, which then falls along a cosine; None: one rate for all steps.
    """
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    for step in range(steps):
        if warm is not None:
            set_rate(optimizer, lr * cosine(step, steps, warm))
        value = loss()
        update(optimizer, value)
        yield float(value.detach())
