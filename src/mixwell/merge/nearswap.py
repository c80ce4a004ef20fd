"""Near swap: the other model's numbers where the two are near, the base's where they are far apart.

**Equation:** s = clamp(t / max(|a - b|, 1e-6), 0, 1); w = s b + (1 - s) a, with a the base.
**Shapes:** any, number by number.
**Reference:** mergekit 0.1.5, `nearswap` (QuartetAnemoi-70B).
**Differs:** none.
**Fails when:** t is large against the differences: it is the other model then.
**Cost:** O(1) a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.merge._parts import call, drawn, needed

MODELS = range(1, 2)
LEAST = 1e-6  # difference that is divided by


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of near swap."""

    t: float = 0.0001  # how far a number moves, at most

    def __post_init__(self) -> None:
        if self.t < 0:
            raise ValueError(f"t is {self.t}; expected 0 or more")


@method(title="Near swap", year=2024, tags={"base", "elementwise", "ordered"})
def nearswap(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator) -> Tensor:
    """The base, each number at most `t` nearer to the other model's."""
    start = needed(base)
    difference = tensors[0] - start
    distance = difference.abs().clamp(min=LEAST)
    share = (config.t / distance).clamp(max=1)
    return start + share * difference


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two models, the first as the base."""
    base, other = drawn(generator, 2)
    config = Config(t=0.5)
    return call([other], base, config, generator)
