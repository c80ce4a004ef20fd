"""A net that reads upright digits, adapted to digits that are turned by a quarter and named otherwise.

Its hidden layers are all of one width, so that layers can share; its head is not adapted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.adapters.attached import Attached
from mixwell.claims.claim import Untestable
from mixwell.core import registry
from mixwell.core.rng import generator
from mixwell.kernels.linear import Linear

WIDTH, DEPTH, CLASSES = 64, 4, 10
FEW = 200  # images to adapt on
TARGETS = "re:layers.*"
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
ERROR = "share of turned digits under other names that are read wrongly"


class Rows(NamedTuple):
    """Images [N, 64] of ink from 0 to 1, and their names [N]."""

    x: Tensor
    y: Tensor


class Net(nn.Module):
    """Linear layers with ReLU between them; inputs and outputs are those of images."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draws = generator(seed, "net")
        hidden = [Linear(WIDTH, WIDTH, True, draws) for _ in range(DEPTH)]
        self.layers = nn.ModuleList(hidden)
        self.head = Linear(WIDTH, CLASSES, True, draws)
        with torch.no_grad():
            for layer in (*hidden, self.head):
                layer.weight.mul_((2 / WIDTH) ** 0.5 / 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 64] -> [N, 10]."""
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


@functools.cache
def images(seed: int) -> list[Rows]:
    """Upright digits to train on (900), turned ones to adapt on (200) and to judge by (697)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    ink = torch.tensor(found.data, dtype=torch.float32) / 16
    names = torch.tensor(found.target)
    order = torch.randperm(len(names), generator=generator(seed, "digits"))
    upright, few, many = order.split([900, FEW, len(names) - 900 - FEW])
    others = torch.randperm(CLASSES, generator=generator(seed, "names"))
    images = ink.view(-1, 8, 8)
    turned = images.rot90(1, (1, 2)).flatten(1)
    return [Rows(ink[upright], names[upright]), *(Rows(turned[own], others[names[own]]) for own in (few, many))]


def trained(model: nn.Module, rows: Rows, steps: int, lr: float,
            beside: Callable[[], Tensor | float] = lambda: 0.0) -> nn.Module:
    """The model after steps of Adam on all rows; `beside` is added to the loss."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        missed = F.cross_entropy(model(rows.x), rows.y) + beside()
        optimizer.zero_grad()
        missed.backward()
        optimizer.step()
    return model


@torch.no_grad()
def wrong(model: nn.Module, rows: Rows) -> float:
    """Share of rows that are read wrongly."""
    found = model(rows.x).argmax(-1)
    return float((found != rows.y).float().mean())


@torch.no_grad()
def nats(model: nn.Module, rows: Rows) -> float:
    """Mean cross-entropy."""
    return float(F.cross_entropy(model(rows.x), rows.y))


@functools.cache
def known(seed: int) -> dict[str, Tensor]:
    """What the net knows of upright digits; `Untestable` where that is little, or the turned ones need no adapting."""
    upright, _, many = images(seed)
    net = trained(Net(seed), upright, 150, 3e-3)
    if wrong(net, upright) > 0.02 or wrong(net, many) < 0.7:
        raise Untestable("the net does not read upright digits, or reads turned ones under other names")
    return {name: value.clone() for name, value in net.state_dict().items()}


def base(seed: int) -> Net:
    """A net that knows upright digits."""
    net = Net(seed)
    net.load_state_dict(known(seed))
    return net


def attached(net: nn.Module, method: str, seed: int, targets: Sequence[str] | str = TARGETS,
             given: dict[str, Any] | None = None, **options: Any) -> Attached:
    """A method of the room beside the hidden layers; `given` goes to `attach`."""
    entry = registry.find(f"adapters.{method}")
    config = entry.module().Config(**options)
    found: Attached = entry.load().attach(net, targets, config, generator(seed, method), **(given or {}))
    return found


def adapted(seed: int, method: str, *, lr: float, steps: int = 100, **options: Any) -> dict[str, float]:
    """Error after adaptation by a method, and the numbers that it trained."""
    net = base(seed)
    there = attached(net, method, seed, **options)
    _, few, many = images(seed)
    trained(net, few, steps, lr)
    return {"error": wrong(net, many), "numbers": float(there.num_parameters)}
