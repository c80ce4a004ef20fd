"""Karcher mean: the point of the sphere with the least sum of squared angles to all models' directions.

**Equation:** u_i = v_i / |v_i|; repeat: th_i = acos <u, u_i>, T = mean_i (th_i / sin th_i)(u_i - <u, u_i> u),
    u <- cos|T| u + sin|T| T / |T|, until |T| < tol; w = u mean_i |v_i|.
**Shapes:** any; each tensor is one vector.
**Reference:** Karcher 1977; mergekit 0.1.5, `karcher`.
**Differs:** an angle of 180 degrees is taken for one of 179.9: no step leads away from it in a way that is defined.
**Fails when:** all are fine-tunes of one base: their angles are so small that it is the mean to four digits.
**Cost:** O(models * iterations) a number; holds all models' tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.merge._parts import MANY, call, drawn, length, product

MODELS = range(1, MANY)
OPPOSITE = 1e-6  # sine below which two directions are opposite


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the Karcher mean."""

    max_iter: int = 10  # steps, at most
    tol: float = 1e-5  # lengths and angles below it are nothing

    def __post_init__(self) -> None:
        if self.max_iter < 0 or self.tol <= 0:
            raise ValueError(f"max_iter is {self.max_iter}, tol {self.tol}; expected 0 or more, and above 0")


def tangent(mean: Tensor, units: Sequence[Tensor], tol: float) -> Tensor:
    """The mean of the directions from `mean` to each unit vector, as long as their angles."""
    total = torch.zeros_like(mean)
    for unit in units:
        cosine = product(mean, unit).clamp(-1, 1).to(mean.dtype)
        theta = cosine.acos()
        if float(theta) < tol:
            continue
        stretch = theta / theta.sin().clamp(min=OPPOSITE)
        total += stretch * (unit - cosine * mean)
    return total / len(units)


def mean_direction(units: Sequence[Tensor], config: Config) -> Tensor:
    """The direction with the least sum of squared angles, from the direction of the mean."""
    mean = torch.stack(list(units)).mean(0)
    length = mean.norm()
    mean = units[0] if float(length) < config.tol else mean / length
    for _ in range(config.max_iter):
        step = tangent(mean, units, config.tol)
        size = step.norm()
        if float(size) < config.tol:
            break
        mean = size.cos() * mean + (size.sin() / size) * step
        mean = mean / mean.norm()
    return mean


@method(title="Karcher mean", year=1977, tags={"averages"})
def karcher(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator) -> Tensor:
    """The Karcher mean of `tensors`; those shorter than `tol` count for the length alone."""
    if len(tensors) == 1:
        return tensors[0].clone()
    shape = tensors[0].shape
    vectors = [tensor.flatten() for tensor in tensors]
    norms = [float(length(vector)) for vector in vectors]
    units = [vector / norm for vector, norm in zip(vectors, norms) if norm > config.tol]
    if not units:
        return torch.zeros_like(tensors[0])
    size = sum(norms) / len(norms)
    mean = mean_direction(units, config)
    return (mean * size).view(shape)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three models."""
    tensors = drawn(generator, 3)
    return call(tensors, None, Config(), generator)
