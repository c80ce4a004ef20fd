"""Model stock: how far from the base towards the mean of fine-tunes, from the angle between them.

**Equation:** d_i = w_i - w_0; c = mean over pairs of cos(d_i, d_j); t = N c / (1 + (N - 1) c);
    w = t mean_i w_i + (1 - t) w_0. t = 0 where the denominator is below 1e-6.
**Shapes:** any; one angle a tensor, or one for each row along the last axis (`filter_wise`).
**Reference:** Jang et al. 2024 (2403.19522), equation 6; mergekit 0.1.5 for more than two models.
**Differs:** `floor` keeps products of lengths from zero. mergekit's 1e-6 is the default: it draws small changes
    (lengths below 1e-3) back to the base; a smaller one does not.
**Fails when:** the fine-tunes learned different tasks: their changes are orthogonal, and the base comes back.
**Cost:** O(models^2) a number; holds all models' changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.merge._parts import MANY, call, fine_tunes, needed

MODELS = range(2, MANY)
SINGULAR = 1e-6


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of model stock."""

    filter_wise: bool = False  # an angle for each row instead of one a tensor
    floor: float = 1e-6  # least product of two lengths

    def __post_init__(self) -> None:
        if self.floor <= 0:
            raise ValueError(f"floor is {self.floor}; expected above 0")


def mean_cosine(deltas: Sequence[Tensor], floor: float) -> Tensor:
    """Mean cosine over the pairs of vectors along the last axis, which stays with length 1."""
    cosines = []
    for first, second in itertools.combinations(deltas, 2):
        lengths = first.norm(dim=-1) * second.norm(dim=-1)
        products = first * second
        cosine = products.sum(-1) / lengths.clamp(min=floor)
        cosines.append(cosine.clamp(-1, 1))
    mean = torch.stack(cosines).mean(0)
    return mean.unsqueeze(-1)


def share(cosine: Tensor, count: int) -> Tensor:
    """t: how much of the way to the mean of `count` models is gone."""
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < SINGULAR
    safe = torch.where(singular, 1.0, denominator)
    ratio = count * cosine / safe
    return torch.where(singular, 0.0, ratio)


@method(title="Model stock", year=2024, tags={"base", "averages"})
def model_stock(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator) -> Tensor:
    """A point between the base and the mean of at least two fine-tunes."""
    start = needed(base)
    rows = start if config.filter_wise else start.flatten()
    deltas = [tensor.view(rows.shape) - rows for tensor in tensors]
    cosine = mean_cosine(deltas, config.floor)
    t = share(cosine, len(deltas))
    mean = torch.stack(deltas).mean(0)
    moved = rows + t * mean
    return moved.view(start.shape)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three fine-tunes and their base."""
    base, tensors = fine_tunes(generator, 3)
    return call(tensors, base, Config(), generator)
