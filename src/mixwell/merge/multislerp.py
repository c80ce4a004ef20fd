"""Spherical mean of many models: the direction of the mean of unit vectors, at the mean length.

**Equation:** u_i = v_i / |v_i|, m = sum_i a_i u_i; w = (m / |m|) sum_i a_i |v_i|, with v_i the weights, or with a base
    the differences from it, which are added to the base.
**Shapes:** any; each tensor is one vector.
**Reference:** mergekit 0.1.5, `multislerp`.
**Differs:** that one steps from m along the tangent at m to the mean of the tangents, which is zero, since m is the
    direction of the mean of the unit vectors; the step is left out here.
**Fails when:** the unit vectors cancel: two such models are merged linearly, more raise `ValueError`.
**Cost:** O(models) a number, each read twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.merge._parts import MANY, Each, call, each, fine_tunes, length, weighted_sum

MODELS = range(1, MANY)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the spherical mean."""

    weight: Each = 1.0  # a_i
    normalize_weights: bool = True  # divide the weights by their sum
    eps: float = 1e-8  # added to each length; a mean shorter than this has no direction

    def __post_init__(self) -> None:
        if self.eps <= 0:
            raise ValueError(f"eps is {self.eps}; expected above 0")


def spherical_mean(vectors: Sequence[Tensor], weights: Sequence[float], eps: float) -> Tensor:
    """The mean direction at the mean length."""
    norms = [float(length(vector)) for vector in vectors]
    pairs = list(zip(weights, norms))
    shares = [weight / (norm + eps) for weight, norm in pairs]
    mean = weighted_sum(vectors, shares)
    size_of_mean = float(length(mean))
    if size_of_mean < eps:
        there = max(norms) > eps
        return _cancelled(vectors, weights, there)
    size = sum(weight * norm for weight, norm in pairs)
    ratio = size / size_of_mean
    return mean.mul_(ratio)


def _cancelled(vectors: Sequence[Tensor], weights: Sequence[float], there: bool) -> Tensor:
    """The weighted sum of two vectors, or of any that are nothing: changes that nobody made."""
    if len(vectors) > 2 and there:
        raise ValueError("the models' directions cancel; give other weights, so that their mean points somewhere")
    return weighted_sum(vectors, weights)


@method(title="Spherical mean (Multi-SLERP)", year=2025, tags={"averages", "optional-base"})
def multislerp(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator) -> Tensor:
    """The spherical mean of `tensors`, or of their differences from `base`; a single model stays as it is."""
    weights = each(config.weight, len(tensors), "weight")
    if len(tensors) == 1:
        return tensors[0].clone()
    total = sum(weights)
    if config.normalize_weights and total == 0:
        raise ValueError("the weights sum to 0; give others, or normalize_weights: false")
    shares = [weight / total for weight in weights] if config.normalize_weights else weights
    if base is None:
        return spherical_mean(tensors, shares, config.eps)
    deltas = [tensor - base for tensor in tensors]
    return base + spherical_mean(deltas, shares, config.eps)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three models and their base."""
    base, tensors = fine_tunes(generator, 3)
    config = Config(weight=(1.0, 2.0, 1.0))
    return call(tensors, base, config, generator)
