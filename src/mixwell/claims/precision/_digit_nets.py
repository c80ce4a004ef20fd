"""Handwritten digits for claims of structured matrices: nets of a few maps, each kept in a structure.

Legend: N images, I inputs of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.rng import generator
from mixwell.core.routing import Context
from mixwell.mixing import Structured, build_structured

TRAINING, BATCH = 1200, 128
WHOLE: Mapping[str, Any] = {"method": "low_rank", "rank": 0}  # a dense matrix
Digits = tuple[Tensor, Tensor, Tensor, Tensor]


def digits(seed: int, training: int = TRAINING) -> Digits:
    """(training images [N, 64] in 0 to 1, their digits, test images, their digits), split anew for each seed."""
    from sklearn.datasets import load_digits

    found = load_digits()
    ink = torch.tensor(found.data, dtype=torch.float32)
    ink = ink / 16
    label = torch.tensor(found.target)
    draws = generator(seed, "split")
    order = torch.randperm(len(label), generator=draws)
    first = order[:training]
    rest = order[TRAINING:]
    return ink[first], label[first], ink[rest], label[rest]


class Net(nn.Module):
    """Maps with biases, ReLU between them."""

    def __init__(self, maps: Sequence[Structured], seed: int) -> None:
        super().__init__()
        self.maps: Any = nn.ModuleList(maps)
        self.biases = nn.ParameterList(torch.zeros(one.rows) for one in maps)
        self.draws = generator(seed, "noise")  # of maps that draw in training
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        """Scores [N, 10] of images [N, 64]."""
        count = len(self.maps)
        for place, (one, bias) in enumerate(zip(self.maps, self.biases)):
            if place:
                x = x.relu()
            context = Context(layer=place, num_layers=count, step=self.step, generator=self.draws)
            x = one(x, context)
            x = x + bias
        return x

    def penalty(self) -> Tensor:
        """What its maps add to the loss."""
        terms = [one.penalty() for one in self.maps]
        there = [term for term in terms if term is not None]
        return torch.stack(there).sum() if there else torch.zeros(())

    def after_step(self) -> None:
        """Tell the maps that a step was done."""
        self.step += 1
        for one in self.maps:
            one.after_step()

    def numbers(self) -> int:
        """Numbers stored for the maps, biases apart."""
        return sum(parameter.numel() for parameter in self.maps.parameters())


def net(seed: int, sizes: Sequence[int], specs: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Net:
    """A net of these widths; one structure for all maps, whose numbers they may share, or one for each. He's start."""
    draws = generator(seed, "net")
    shapes = [(rows, columns) for columns, rows in pairwise(sizes)]
    if isinstance(specs, Mapping):
        made = build_structured(specs, shapes, draws)
    else:
        made = [build_structured(spec, [shape], draws)[0] for spec, shape in zip(specs, shapes)]
    with torch.no_grad():
        for one in made:
            one.weight.mul_(2**0.5)
    return Net(made, seed)


def descend(model: Any, data: Digits, seed: int, *, steps: int, lr: float, momentum: float | None = None,
            extra: Callable[[Tensor, Tensor], Tensor] | None = None) -> Any:
    """Train by Adam, or by descent with momentum, at a rate that falls as a cosine; handed back in evaluation.

    extra: the loss of a batch in place of cross-entropy.
    """
    x, y, _, _ = data
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if momentum is None:
        optimizer: torch.optim.Optimizer = torch.optim.Adam(parameters, lr=lr)
    else:
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draws = generator(seed, "batches")
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,), generator=draws)
        loss = F.cross_entropy(model(x[rows]), y[rows]) if extra is None else extra(x[rows], y[rows])
        total = loss + model.penalty()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        falling.step()
        model.after_step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Any, data: Digits) -> float:
    """Share of the test images whose digit is right."""
    _, _, x, y = data
    right = model(x).argmax(1) == y
    return float(right.float().mean())
