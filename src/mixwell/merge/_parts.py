"""What merges of weights share: values given once or for each model, task vectors, angles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MANY = 1000  # models, at most
Each = float | tuple[float, ...]  # one value for all models, or one a model
TINY = 1e-12
PIECE = 2**16  # numbers that are widened at a time


def each(value: Each, count: int, name: str) -> list[float]:
    """One number a model; a list of another length raises `ValueError`."""
    if not isinstance(value, tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} lists {len(value)} values for {count} models; expected one number, or one a model")
    return list(value)


def listed(value: Each) -> tuple[float, ...]:
    """The value, or the values, to be checked."""
    return value if isinstance(value, tuple) else (value,)


def check_share(value: Each, name: str) -> None:
    """Raise `ValueError` where a share, or one of them, is not from 0 to 1."""
    for share in listed(value):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is {share}; expected 0 to 1")


def drawn(generator: torch.Generator, count: int) -> list[Tensor]:
    """Small tensors for a rule's example."""
    shape = (4, 5)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def fine_tunes(generator: torch.Generator, count: int) -> tuple[Tensor, list[Tensor]]:
    """A small base, and fine-tunes of it."""
    base, *changes = drawn(generator, count + 1)
    return base, [base + change for change in changes]


def call(tensors: Sequence[Tensor], base: Tensor | None, config: Any, generator: torch.Generator) -> dict[str, Any]:
    """The arguments of a rule by name."""
    return {"tensors": tensors, "base": base, "config": config, "generator": generator}


def needed(base: Tensor | None) -> Tensor:
    """The base's tensor, which the caller has seen to."""
    assert base is not None
    return base


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i w_i x_i; the tensors are looked at one by one."""
    first, *others = weights
    total = first * tensors[0]
    for place, weight in enumerate(others, start=1):
        total += weight * tensors[place]  # a fused product would not round it: opposite ones would not cancel
    return total


def product(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of two tensors in float64, piece by piece: sums of many millions lose digits in float32."""
    total = torch.zeros((), dtype=torch.float64)
    pairs = zip(a.reshape(-1).split(PIECE), b.reshape(-1).split(PIECE))
    for one, other in pairs:
        total += torch.dot(one.double(), other.double())
    return total


def length(a: Tensor) -> Tensor:
    """|a| in float64."""
    return product(a, a).sqrt()


def combined(models: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """sum_i w_i x_i of tensors under the same names."""
    found = {}
    for name in models[0]:
        tensors = [model[name] for model in models]
        found[name] = weighted_sum(tensors, weights)
    return found


def majority(deltas: Sequence[Tensor]) -> Tensor:
    """The sign of the sum over models, 1 or -1; a sum of zero counts as positive."""
    total = torch.zeros_like(deltas[0])
    for delta in deltas:
        total += delta
    return total.sign_().add_(0.5).sign_()


def agreeing(deltas: Sequence[Tensor]) -> list[Tensor]:
    """Where each model's entry has the majority's sign."""
    signs = majority(deltas)
    return [delta * signs > 0 for delta in deltas]
