"""Pass through: one model's tensors as they are, or times a number; layers of several models stack into a deeper one.

**Equation:** w = s w_1.
**Shapes:** any.
**Reference:** mergekit 0.1.5, `passthrough`; the deeper models are depth up-scaling (Kim et al. 2023, 2312.15166).
**Differs:** none.
**Fails when:** stacked layers are not trained on: the model is worse than its parts.
**Cost:** one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.merge._parts import call, drawn

MODELS = range(1, 2)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of passing through."""

    scale: float | None = None  # s; None = 1


@method(title="Pass through", year=2023, tags={"elementwise", "averages"})
def passthrough(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator) -> Tensor:
    """The one tensor, times `scale`."""
    (only,) = tensors
    return only.clone() if config.scale is None else only * config.scale


def example(generator: torch.Generator) -> dict[str, Any]:
    """One model."""
    tensors = drawn(generator, 1)
    return call(tensors, None, Config(), generator)
