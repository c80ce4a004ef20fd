"""Spherical interpolation with weights, of whole tensors, rows or columns, of models or of what they learned.

**Equation:** t = w_2 / (w_1 + w_2); the arc as in `merge.slerp` between the two models, or, with a base, between the
    differences from it, which are added to the base; linear where 1 - cos^2 <= 1e-16.
**Shapes:** any; one vector a tensor (`flatten`), else one for each slice along the last axis, or along the first
    (`row_wise`).
**Reference:** mergekit 0.1.5, `nuslerp`.
**Differs:** computed in float32 whatever the models are stored in.
**Fails when:** both weights cancel (t is then 1/2), or without a base as `merge.slerp` does.
**Cost:** O(1) a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.merge._parts import Each, call, each, fine_tunes

MODELS = range(2, 3)
FLOOR, PARALLEL = 1e-7, 1e-16  # of a norm; of 1 - cos^2


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of weighted spherical interpolation."""

    weight: Each = 1.0  # w_i
    nuslerp_row_wise: bool = False  # slices along the first axis instead of the last
    nuslerp_flatten: bool = True  # each tensor is one vector


def position(weights: Sequence[float]) -> float:
    """t: the second model's share of the weights."""
    total = sum(weights)
    return 0.5 if abs(total) < 1e-6 else weights[1] / total


def arc(a: Tensor, b: Tensor, t: float) -> Tensor:
    """A point of the arc between vectors, which lie along the last axis."""
    unit_a, unit_b = _unit(a), _unit(b)
    products = unit_a * unit_b
    cosine = products.sum(-1, keepdim=True, dtype=torch.float64)
    cosine = cosine.clamp(-1, 1)
    straight = 1 - cosine.square() <= PARALLEL
    theta = torch.where(straight, 1.0, cosine).acos()
    theta = torch.where(straight, 1.0, theta)  # any angle: the chord is taken there
    sine = theta.sin()
    first = torch.sin((1 - t) * theta)
    second = torch.sin(t * theta)
    first = torch.where(straight, 1 - t, first / sine)
    second = torch.where(straight, t, second / sine)
    return first.to(a.dtype) * a + second.to(b.dtype) * b


def _unit(vectors: Tensor) -> Tensor:
    norms = vectors.norm(dim=-1, keepdim=True, dtype=torch.float64)
    return vectors / norms.clamp(min=FLOOR)


@method(title="Weighted spherical interpolation (NuSLERP)", year=2024, tags={"ordered", "averages", "optional-base"})
def nuslerp(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator) -> Tensor:
    """A point of the arc between two tensors, or between their differences from `base`."""
    weights = each(config.weight, len(tensors), "weight")
    t = position(weights)
    a, b = tensors
    if base is not None:
        a, b = a - base, b - base
    merged = _shaped(a, b, t, config)
    return merged if base is None else base + merged


def _shaped(a: Tensor, b: Tensor, t: float, config: Config) -> Tensor:
    if config.nuslerp_flatten:
        flat = arc(a.flatten(), b.flatten(), t)
        return flat.view(a.shape)
    if not config.nuslerp_row_wise:
        return arc(a, b, t)
    columns_a, columns_b = a.transpose(0, -1), b.transpose(0, -1)
    merged = arc(columns_a, columns_b, t)
    return merged.transpose(0, -1)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two models and their base."""
    base, tensors = fine_tunes(generator, 2)
    config = Config(weight=(1.0, 3.0))
    return call(tensors, base, config, generator)
