"""Spherical interpolation: along the arc between two models' weights instead of the chord.

**Equation:** theta = acos(<a, b> / (|a| |b|)); w = (sin((1 - t) theta) a + sin(t theta) b) / sin theta, with the raw a
    and b; linear where |cos theta| > 0.9995.
**Shapes:** any; each tensor is one vector.
**Reference:** Shoemake 1985, "Animating rotation with quaternion curves".
**Differs:** a tensor of zeros has the cosine 0 to any other.
**Fails when:** the two are fine-tunes of one base, whose cosine is near 1: it is the linear merge then.
**Cost:** O(1) a number, each read twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.merge._parts import TINY, call, drawn, length, product

MODELS = range(2, 3)
PARALLEL = 0.9995  # |cos| above which the arc is taken for its chord


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of spherical interpolation."""

    t: float = 0.5  # 0 is the first model, 1 the second


def shares(cosine: float, t: float) -> tuple[float, float]:
    """The factors of both ends of the arc."""
    if abs(cosine) > PARALLEL:
        return 1 - t, t
    theta = math.acos(cosine)
    sine = math.sin(theta)
    first = math.sin((1 - t) * theta)
    second = math.sin(t * theta)
    return first / sine, second / sine


def survey(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator) -> Any:
    """The factors, which take whole tensors to know."""
    a, b = tensors
    norms = length(a) * length(b)
    cosine = product(a, b) / norms.clamp(min=TINY)
    bounded = cosine.clamp(-1, 1)
    return shares(float(bounded), config.t)


@method(title="Spherical interpolation (SLERP)", year=1985, tags={"elementwise", "ordered", "averages", "surveys"})
def slerp(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator,
          known: Any = None) -> Tensor:
    """A point of the arc from the first tensor to the second. known: what `survey` found, where these are pieces."""
    first, second = known or survey(tensors, base, config, generator)
    start = tensors[0] * first
    return start.add_(tensors[1], alpha=second)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two models."""
    config = Config(t=0.3)
    return call(drawn(generator, 2), None, config, generator)
