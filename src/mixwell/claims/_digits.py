"""What claims on small images share: scikit-learn's digits, and nets whose products a method takes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core import registry
from mixwell.core.config import from_dict
from mixwell.core.rng import generator

TRAIN, CLASSES = 1200, 10


class Digits(NamedTuple):
    """Images [N, 64] from -1 to 1 with their classes; the last 597 are held out."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor


@functools.cache
def digits() -> Digits:
    """The data set, in one drawn order."""
    from sklearn.datasets import load_digits

    found = load_digits()
    draws = generator(0, "digits")
    order = torch.randperm(len(found.target), generator=draws)
    points = torch.tensor(found.data, dtype=torch.float32)
    even = points / 8 - 1
    x = even[order]
    classes = torch.tensor(found.target)
    y = classes[order]
    others = len(y) - TRAIN
    seen_x, held_x = x.split([TRAIN, others])
    seen_y, held_y = y.split([TRAIN, others])
    return Digits(seen_x, seen_y, held_x, held_y)


def drawn(shape: tuple[int, ...], draws: torch.Generator, gain: float = 1.0) -> Tensor:
    """Normal numbers with variance `gain` over a row's inputs."""
    inputs = math.prod(shape[1:])
    values = torch.randn(shape, generator=draws)
    return values * (gain / inputs) ** 0.5


class Net(nn.Module):
    """Layers of rectified products, the last one without."""

    def __init__(self, widths: Sequence[int], seed: int, arithmetic: str = "", **options: Any) -> None:
        super().__init__()
        draws = generator(seed, "net")
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.products = nn.ModuleList()
        for inputs, outputs in itertools.pairwise(widths):
            shape = outputs, inputs
            self.weights.append(drawn(shape, draws, 2.0))
            self.biases.append(torch.zeros(outputs))
            take = product_of(arithmetic, shape, draws, **options)
            self.products.append(take)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes]."""
        layers = zip(self.products, self.weights, self.biases)
        y = x
        for take, weight, bias in layers:
            y = take(x, weight) + bias
            x = y.relu()
        return y


class Plain(nn.Module):
    """The product in float32 as a module."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """x W^T."""
        return F.linear(x, weight)


def product_of(arithmetic: str, shape: tuple[int, int], draws: torch.Generator, **options: Any) -> nn.Module:
    """A product by name, the plain one by none."""
    if not arithmetic:
        return Plain()
    entry = registry.find(arithmetic, "precision.training")
    config = from_dict(entry.module().Config, options)
    made: nn.Module = entry.load()(shape, config, draws)
    return made


def batches(seed: int, steps: int, size: int) -> list[Tensor]:
    """Rows of each step, drawn anew."""
    draws = generator(seed, "batches")
    return [torch.randint(TRAIN, (size,), generator=draws) for _ in range(steps)]


def rate(lr: float, step: int, steps: int) -> float:
    """A learning rate that falls to 0 along a line over the second half."""
    left = 2 * (steps - step) / steps
    return lr * min(1.0, left)


def trained(net: nn.Module, seed: int, lr: float, steps: int, step_of: Callable[[float], None], size: int = 64) -> None:
    """Train a net; `step_of(lr)` moves it once its gradients are there."""
    found = digits()
    net.train()
    for step, rows in enumerate(batches(seed, steps, size)):
        logits = net(found.x[rows])
        loss = F.cross_entropy(logits, found.y[rows])
        loss.backward()
        now = rate(lr, step, steps)
        step_of(now)


def adam(net: nn.Module) -> Callable[[float], None]:
    """A step of Adam in float32."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1.0)

    def move(lr: float) -> None:
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()

    return move


@torch.no_grad()
def weighed(net: nn.Module) -> dict[str, float]:
    """Held-out loss in nats and accuracy."""
    found = digits()
    net.eval()
    logits = net(found.held_x)
    loss = F.cross_entropy(logits, found.held_y)
    right = logits.argmax(-1) == found.held_y
    share = right.float().mean()
    return {"loss": float(loss), "accuracy": float(share)}
