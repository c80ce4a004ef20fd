"""SCE: select what differs between models, calculate weights from it, erase what goes against the majority.

**Equation:** d_i = w_i - w_0. Select: keep the share `select_topk` of entries with the largest variance over models.
    Calculate: c_i = mean(d_i^2) / sum_j mean(d_j^2). Erase: m_i where sign d_i is that of sum_j d_j (zero counts as
    positive). w = w_0 + sum_i c_i m_i d_i / max(sum_i c_i m_i, 1e-6).
**Shapes:** any; c_i is a number a tensor.
**Reference:** Wan et al. 2024 (2408.07990), section 3.3; mergekit 0.1.5.
**Differs:** entries whose variance is the last one kept are all kept. `floor` is mergekit's absolute 1e-6 below which
    all models weigh the same; small fine-tunes fall below it.
**Fails when:** models drifted unequally far: the farthest one rules.
**Cost:** O(models) a number and a selection; holds all models' changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.merge._parts import MANY, agreeing, call, check_share, fine_tunes, needed

MODELS = range(1, MANY)
LEAST = 1e-6  # sum of weights that is divided by


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of SCE."""

    select_topk: float = 1.0  # share of the entries that differ which are kept
    floor: float = 1e-6  # sum of mean squares below which all models weigh the same

    def __post_init__(self) -> None:
        check_share(self.select_topk, "select_topk")


def selection(deltas: Sequence[Tensor], share: float) -> Tensor:
    """Where the variance over models is among the largest."""
    variance = torch.stack(list(deltas)).var(0, unbiased=False)
    differing = int(variance.count_nonzero())
    count = int(differing * share)
    if count == 0:
        return torch.zeros_like(variance, dtype=torch.bool)
    place = variance.numel() - count
    flat = variance.flatten().numpy()
    ordered = np.partition(flat, place)
    least = float(ordered[place])
    return variance >= least


def shares(deltas: Sequence[Tensor], floor: float) -> list[float]:
    """c_i, which sum to 1."""
    sizes = [float(delta.square().mean()) for delta in deltas]
    total, count = sum(sizes), len(sizes)
    if total < floor:
        return [1 / count] * count
    return [size / total for size in sizes]


@method(title="Select, calculate, erase (SCE)", year=2024, tags={"base", "averages"})
def sce(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator) -> Tensor:
    """The base and the mean of the changes that most models make in one direction."""
    start = needed(base)
    deltas = [tensor - start for tensor in tensors]
    if config.select_topk < 1:
        kept = selection(deltas, config.select_topk)
        deltas = [delta * kept for delta in deltas]
    weights = shares(deltas, config.floor)
    total, divisor = torch.zeros_like(start), torch.zeros_like(start)
    for weight, delta, agrees in zip(weights, deltas, agreeing(deltas)):
        part = weight * agrees
        total += part * delta
        divisor += part
    return start + total / divisor.clamp(min=LEAST)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three fine-tunes and their base."""
    base, tensors = fine_tunes(generator, 3)
    return call(tensors, base, Config(), generator)
