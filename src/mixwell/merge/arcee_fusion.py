"""Arcee fusion: what changed most, by size and by what it does to a softmax, comes over from the other model.

**Equation:** I = |b - a| KL(softmax(b) || softmax(a)), rows along the last axis; w = b where I >= median(I) +
    1.5 (q_75(I) - q_25(I)), else a, the base.
**Shapes:** any; softmax over the last axis.
**Reference:** mergekit 0.1.5, `arcee_fusion`.
**Differs:** quantiles are those of all numbers; mergekit draws a million with replacement where a tensor has more.
**Fails when:** I has no spread: everything is at the threshold then, and the other model comes over whole.
**Cost:** O(1) a number and three selections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.merge._parts import call, drawn, needed

MODELS = range(1, 2)
ADDED = 1e-8  # to probabilities
QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Arcee fusion has no options beside the spread."""

    spread: float = 1.5  # quartile distances above the median that a change must reach


def importance(other: Tensor, base: Tensor) -> Tensor:
    """|b - a| times the divergence of the rows' softmax."""
    p = other.softmax(-1) + ADDED
    q = base.softmax(-1) + ADDED
    ratio = p / q
    terms = p * ratio.log()
    divergence = terms.sum(-1, keepdim=True)
    change = other - base
    return change.abs() * divergence


def threshold(scores: Tensor, spread: float) -> float:
    """Median plus `spread` times the distance of the quartiles, each the number at that place below."""
    flat = scores.flatten().numpy()
    last = flat.size - 1
    places = [int(share * last) for share in QUARTERS]
    ordered = np.partition(flat, places)
    low, middle, high = ordered[places].tolist()
    between = high - low
    return middle + spread * between


@method(title="Arcee fusion", year=2024, tags={"base", "ordered"})
def arcee_fusion(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator) -> Tensor:
    """The base with the most important changes of the other model."""
    start, other = needed(base), tensors[0]
    scores = importance(other, start)
    least = threshold(scores, config.spread)
    taken = scores >= least
    return torch.where(taken, other, start)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two models, the first as the base."""
    base, other = drawn(generator, 2)
    return call([other], base, Config(), generator)
