"""Reinforced agent merging: what one model alone changed comes over whole, what several changed is averaged.

**Equation:** d_i = w_i - w_0, present where |d_i| > epsilon; n counts the models present at an entry.
    w = w_0 + sum_i [present] d_i (f_i where n = 1, 1 / n where n > 1).
    ram: f_i = 1. ramplus_tl: f_i = 1 + r clamp(rho_i, 0, alpha), rho_i = entries of i with n > 1 / entries with n = 1.
**Shapes:** any; f_i is a number a tensor.
**Reference:** Reinforced agent merging, 2026 (2601.13572); mergekit 0.1.5, `ram` and `ramplus_tl`.
**Differs:** none.
**Fails when:** epsilon is far from the size of changes: all is unique, or nothing is present.
**Cost:** O(models) a number; holds all models' changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.merge._parts import MANY, call, fine_tunes, needed

MODELS = range(1, MANY)
ROWS: dict[str, dict[str, Any]] = {"ram": {}, "ramplus_tl": {"r": 0.1}}  # mergekit's names -> options


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of reinforced agent merging."""

    epsilon: float = 1e-5  # change that counts as one
    r: float = 0.0  # how much unique changes gain by what is shared; 0.1 in ramplus_tl
    alpha: float = 0.2  # bound on rho

    def __post_init__(self) -> None:
        if self.epsilon < 0 or self.alpha < 0:
            raise ValueError(f"epsilon is {self.epsilon}, alpha {self.alpha}; expected 0 or more")


def gain(present: Tensor, counts: Tensor, config: Config) -> float:
    """f_i, from what a model shares with others."""
    common = present & (counts > 1)
    alone = present & (counts == 1)
    shared, unique = int(common.sum()), int(alone.sum())
    rho = shared / max(unique, config.epsilon)
    bounded = min(rho, config.alpha)
    return 1 + config.r * bounded


@method(title="Reinforced agent merging", year=2026, tags={"base", "averages"})
def ram(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator) -> Tensor:
    """The base and the models' changes, averaged where several made one."""
    start = needed(base)
    deltas = [tensor - start for tensor in tensors]
    present = [delta.abs() > config.epsilon for delta in deltas]
    counts = torch.stack(present).sum(0)
    merged = start.clone()
    for delta, mask in zip(deltas, present):
        factor = gain(mask, counts, config) if config.r else 1.0
        means = 1 / counts.clamp(min=1)
        share = torch.where(counts == 1, factor, means)
        merged += share * delta * mask
    return merged


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three fine-tunes and their base."""
    base, tensors = fine_tunes(generator, 3)
    return call(tensors, base, Config(), generator)
