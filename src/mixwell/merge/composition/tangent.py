"""Tangent composition: nets linear in what they learn, so that averages are ensembles and what was added can be taken out.

**Equation:** f(x; D) = f(x; w_0) + J(x; w_0) D; each part learns its D_i by |f(x; D) - s onehot|^2 + c |D|. Composition
    D = sum_i l_i D_i gives exactly sum_i l_i of the parts' answers (l sums to 1); leaving a part out forgets it exactly.
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

from mixwell.core.method import method

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
            raise ValueError(f"penalty is {self.penalty}, lr {self.lr}, steps {self.steps}; expected 0 or more, above 0, "
                             "1 or more")


@method(title="Tangent model composition",
        paper="Tangent Model Composition for Ensembling and Continual Fine-tuning", year=2023)
def tangent(net: Net, start: Tensors, change: Tensors, inputs: Tensor) -> Tensor:
    """f(x; D), linear in `change`, which is like `start`."""
    answers, moved = jvp(lambda parameters: net(parameters, inputs), (dict(start),), (dict(change),))
    return answers + moved


def fitted(net: Net, start: Tensors, inputs: Tensor, labels_B: Tensor, config: Config) -> dict[str, Tensor]:
    """D of one part: full-batch Adam, from almost nothing."""
    change = {name: torch.full_like(tensor, 1e-12).requires_grad_() for name, tensor in start.items()}
    optimizer = torch.optim.Adam(list(change.values()), lr=config.lr)
    for _ in range(config.steps):
        answers = tangent(net, start, change, inputs)
        targets = config.target * torch.nn.functional.one_hot(labels_B, answers.shape[-1])
        square = sum((part.square().sum() for part in change.values()), torch.zeros(()))
        loss = (answers - targets).square().mean() + config.penalty * square.sqrt()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: part.detach() for name, part in change.items()}


def composed(changes: Sequence[Tensors], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """sum_i l_i D_i; the mean where no weights are given."""
    if not changes:
        raise ValueError("no change came; expected one or more")
    shares = [1 / len(changes)] * len(changes) if weights is None else list(weights)
    pairs = list(zip(shares, changes, strict=True))
    return {name: sum((share * change[name] for share, change in pairs), torch.zeros_like(changes[0][name]))
            for name in changes[0]}


def forgotten(mean: Tensors, part: Tensors, count: int) -> dict[str, Tensor]:
    """The mean of `count` changes without one of them."""
    if count < 2:
        raise ValueError(f"count is {count}; expected 2 or more: nothing would be left")
    return {name: (count * whole - part[name]) / (count - 1) for name, whole in mean.items()}


def example(generator: torch.Generator) -> dict[str, Any]:
    """A tanh layer on three inputs."""
    start, change = ({"w": torch.randn(2, 3, generator=generator)} for _ in range(2))
    inputs = torch.randn(4, 3, generator=generator)
    return {"net": lambda parameters, x: torch.tanh(x @ parameters["w"].T), "start": start, "change": change,
            "inputs": inputs}
