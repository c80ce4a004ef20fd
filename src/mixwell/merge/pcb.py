"""PCB-Merging: parameters compete, within a task by their size and between tasks by agreement; winners are averaged.

**Equation:** t_i = w_i - w_0 over the whole model, n tasks; c_i = |t_i| clamped to its 0.01 % and 99.99 % quantiles.
    a_i = exp(n minmax(c_i)^2), b_i = tanh(t_i sum_j t_j), s_i = a_i b_i clamped from below at its (1 - r) quantile,
    then minmax, so that all but the share r are 0. w = w_0 + lambda sum_i s_i c_i sign(t_i) / max(sum_i s_i, 1e-12).
**Shapes:** any; quantiles are those of all of a model's tensors together.
**Reference:** Du et al. 2024 (2410.02396), equations 2 to 5, and the authors' code, which has no softmax.
**Differs:** quantiles are the number at that place below, not between two.
**Fails when:** tasks hardly overlap: agreement is then each task's own square.
**Cost:** O(models) a number, each read seven times; holds pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.merge._parts import MANY, check_share, needed
from mixwell.merge._quantiles import smallest
from mixwell.merge.overview import Pieces

MODELS = range(1, MANY)
TAIL, NOTHING = 1e-4, 1e-12  # share cut off at both ends; sum of scores that is divided by


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of PCB-Merging."""

    ratio: float = 0.1  # r: share of entries that win in a task
    scale: float = 1.2  # lambda

    def __post_init__(self) -> None:
        check_share(self.ratio, "ratio")


class Range(NamedTuple):
    """Of one task, over the whole model."""

    low: float  # of sizes
    high: float
    floor: float  # of scores
    top: float


def spread(values: Tensor, low: float, high: float) -> Tensor:
    """minmax: 0 at `low`, 1 at `high`; 0 everywhere where they are one."""
    width = high - low
    return (values - low) / width if width > 0 else torch.zeros_like(values)


def scores(deltas: Sequence[Tensor], place: int, low: float, high: float) -> Tensor:
    """s_i before it is cut: within the task times between tasks."""
    sizes = deltas[place].abs().clamp(low, high)
    shares = spread(sizes, low, high)
    within = (len(deltas) * shares.square()).exp()
    total = torch.stack(list(deltas)).sum(0)
    between = (deltas[place] * total).tanh()
    return (within * between).float()  # as quantiles are: the last winner's score is then the floor itself


def overview(pieces: Pieces, count: int, config: Config) -> list[Range]:
    """Quantiles of sizes and of scores over the whole model."""
    found = []
    for place in range(count):
        def sizes(place: int = place) -> Iterator[Tensor]:
            return (deltas[place].abs() for deltas in _changes(pieces))

        whole = sum(piece.numel() for piece in sizes())
        cut = int(TAIL * (whole - 1))
        low, high = smallest(sizes, [cut, whole - 1 - cut])

        def own(place: int = place, low: float = low, high: float = high) -> Iterator[Tensor]:
            return (scores(deltas, place, low, high) for deltas in _changes(pieces))

        rank = int((1 - config.ratio) * (whole - 1))
        floor, top = smallest(own, [rank, whole - 1])
        found.append(Range(low, high, floor, top))
    return found


def _changes(pieces: Pieces) -> Iterator[list[Tensor]]:
    for tensors, base in pieces():
        yield [tensor - needed(base) for tensor in tensors]


@method(title="PCB-Merging", paper="Parameter Competition Balancing for Model Merging", year=2024,
        tags={"base", "elementwise", "overviews"})
def pcb(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator,
        known: Sequence[Range] | None = None) -> Tensor:
    """The base and the changes that won. known: what `overview` found; else these tensors are the whole model."""
    start = needed(base)
    ranges = known or overview(lambda: iter([(list(tensors), base)]), len(tensors), config)
    deltas = [tensor - start for tensor in tensors]
    total, divisor = torch.zeros_like(start), torch.zeros_like(start)
    for place, (delta, own) in enumerate(zip(deltas, ranges)):
        raw = scores(deltas, place, own.low, own.high).clamp(min=own.floor)
        score = spread(raw, own.floor, own.top)
        size = delta.abs().clamp(own.low, own.high)
        total += score * size * delta.sign()
        divisor += score
    return start + config.scale * total / divisor.clamp(min=NOTHING)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three fine-tunes and their base."""
    base = torch.randn(4, 5, generator=generator)
    tensors = [base + torch.randn(4, 5, generator=generator) for _ in range(3)]
    return {"tensors": tensors, "base": base, "config": Config(ratio=0.5), "generator": generator}
