"""Tangent composition: nets linear in what they learn: averages are ensembles, and what was added can be taken out.

**Equation:** f(x; D) = f(x; w_0) + J(x; w_0) D; each part learns its D_i by |f(x; D) - s onehot|^2 + c |D|. Composition
    D = sum_i l_i D_i gives exactly sum_i l_i of the parts' answers (l sums to 1); a part left out is forgotten.
**Shapes:** D is like the parameters; answers [B, C].
**Reference:** Liu and Soatto 2023 (2307.08114), equations 1 to 4, and the authors' code for loss and scale.
**Differs:** the Jacobian product is `torch.func.jvp` of the whole net.
**Fails when:** the net was not trained before: its tangent at random weights learns little.
**Cost:** about three forward passes, whatever the number of parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.merge._parts import combined, drawn

Tensors = Mapping[str, Tensor]
Net = Callable[[Tensors, Tensor], Tensor]  # (parameters, inputs) -> answers


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of tangent training."""

    target: float = 15.0  # s
    penalty: float = 1e-5  # c, of the norm, not of its square
    lr: float = 1e-2
    steps: int = 200

    def __post_init__(self) -> None:
        if self.penalty < 0 or self.lr <= 0 or self.steps < 1:
            raise ValueError(f"penalty is {self.penalty}, lr {self.lr}, steps {self.steps}; expected 0 or more, above "
                             "0, 1 or more")


@method(title="Tangent model composition",
        paper="Tangent Model Composition for Ensembling and Continual Fine-tuning", year=2023)
def tangent(net: Net, start: Tensors, change: Tensors, inputs: Tensor) -> Tensor:
    """f(x; D), linear in `change`, which is like `start`."""
    given, moved = (dict(start),), (dict(change),)
    answers, slope = jvp(lambda parameters: net(parameters, inputs), given, moved)[:2]
    return answers + slope


def fitted(net: Net, start: Tensors, inputs: Tensor, labels_B: Tensor, config: Config) -> dict[str, Tensor]:
    """D of one part: full-batch Adam, from almost nothing."""
    change = {name: torch.full_like(tensor, 1e-12).requires_grad_() for name, tensor in start.items()}
    optimizer = torch.optim.Adam(list(change.values()), lr=config.lr)
    for _ in range(config.steps):
        answers = tangent(net, start, change, inputs)
        loss = loss_of(answers, labels_B, change, config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: part.detach() for name, part in change.items()}


def loss_of(answers_BC: Tensor, labels_B: Tensor, change: Tensors, config: Config) -> Tensor:
    """|f - s onehot|^2 + c |D|."""
    classes = answers_BC.shape[-1]
    targets_BC = config.target * F.one_hot(labels_B, classes)
    missed = (answers_BC - targets_BC).square()
    flat = torch.cat([part.flatten() for part in change.values()])
    return missed.mean() + config.penalty * flat.norm()


def composed(changes: Sequence[Tensors], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """sum_i l_i D_i; the mean where no weights are given."""
    if not changes:
        raise ValueError("no change came; expected one or more")
    count = len(changes)
    shares = [1 / count] * count if weights is None else list(weights)
    if len(shares) != count:
        raise ValueError(f"{len(shares)} weights came for {count} changes; expected one a change")
    return combined(changes, shares)


def forgotten(mean: Tensors, part: Tensors, count: int) -> dict[str, Tensor]:
    """The mean of `count` changes without one of them."""
    if count < 2:
        raise ValueError(f"count is {count}; expected 2 or more: nothing would be left")
    return {name: (count * whole - part[name]) / (count - 1) for name, whole in mean.items()}


def example(generator: torch.Generator) -> dict[str, Any]:
    """A tanh layer on three inputs."""
    weight, moved, inputs = drawn(generator, 3)
    return {"net": _layer, "start": {"w": weight}, "change": {"w": moved}, "inputs": inputs}


def _layer(parameters: Tensors, inputs: Tensor) -> Tensor:
    return torch.tanh(inputs @ parameters["w"].T)
