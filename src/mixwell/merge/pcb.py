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
from mixwell.merge._parts import MANY, call, check_share, fine_tunes, needed
from mixwell.merge._quantiles import smallest
from mixwell.merge.overview import Pieces, alone

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
    own, count = deltas[place], len(deltas)
    sizes = own.abs().clamp(low, high)
    shares = spread(sizes, low, high)
    within = torch.exp(count * shares.square())
    total = torch.stack(list(deltas)).sum(0)
    between = torch.tanh(own * total)
    found = within * between
    return found.float()  # as quantiles are: the last winner's score is then the floor itself


def overview(pieces: Pieces, count: int, config: Config) -> list[Range]:
    """Quantiles of sizes and of scores over the whole model."""
    last = sum(tensors[0].numel() for tensors, _ in pieces()) - 1
    cut = int(TAIL * last)
    rank = int((1 - config.ratio) * last)
    found = []
    for place in range(count):
        task = Task(pieces, place)
        low, high = smallest(task.sizes, [cut, last - cut])
        bounded = task._replace(low=low, high=high)
        floor, top = smallest(bounded.scores, [rank, last])
        found.append(Range(low, high, floor, top))
    return found


class Task(NamedTuple):
    """One task of several, piece by piece."""

    pieces: Pieces
    place: int
    low: float = 0.0  # sizes are clamped to
    high: float = 0.0

    def _changes(self) -> Iterator[list[Tensor]]:
        for tensors, base in self.pieces():
            yield [tensor - needed(base) for tensor in tensors]

    def sizes(self) -> Iterator[Tensor]:
        """|t_i|."""
        for deltas in self._changes():
            yield deltas[self.place].abs()

    def scores(self) -> Iterator[Tensor]:
        """s_i before it is cut."""
        for deltas in self._changes():
            yield scores(deltas, self.place, self.low, self.high)


@method(title="PCB-Merging", paper="Parameter Competition Balancing for Model Merging", year=2024,
        tags={"base", "elementwise", "overviews"})
def pcb(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator,
        known: Sequence[Range] | None = None) -> Tensor:
    """The base and the changes that won. known: what `overview` found; else these tensors are the whole model."""
    start = needed(base)
    ranges = known or overview(alone(tensors, base), len(tensors), config)
    deltas = [tensor - start for tensor in tensors]
    total = torch.zeros_like(start)
    divisor = torch.zeros_like(start)
    for place, own in enumerate(ranges):
        raw = scores(deltas, place, own.low, own.high)
        score = spread(raw.clamp(min=own.floor), own.floor, own.top)
        delta = deltas[place]
        size = delta.abs().clamp(own.low, own.high)
        total += score * size * delta.sign()
        divisor += score
    mean = total / divisor.clamp(min=NOTHING)
    return start + config.scale * mean


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three fine-tunes and their base."""
    base, tensors = fine_tunes(generator, 3)
    config = Config(ratio=0.5)
    return call(tensors, base, config, generator)
