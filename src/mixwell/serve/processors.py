"""Which part runs where, by how often a weight is used: the busy experts on one processor, the rest beside memory.

**Equation:** a product of n rows with a weight of d x f takes t_u(n) = max(2 n d f / P_u, b d f / W_u) on a unit of P_u
    operations and W_u bytes a second, b bytes a number. Experts sorted by their tokens, the busiest first: the first k
    run on unit 1 and the rest on unit 2, both at once, in max(sum_{e <= k} t_1(n_e), sum_{e > k} t_2(n_e)); k is the
    best of 0..E. Where unit 1 is bound by memory and unit 2 by operations they are equally fast at
    n* = b P_2 / (2 W_1).
**Shapes:** counts [E] of an expert's tokens.
**Reference:** Yun et al. 2024, Duplex (2409.01141), section 5.
**Differs:** formulas as recalled; the paper reads times off a measured table, `seconds` computes them. What both units
    draw from memory at once is held to `shared` bytes a second, where one is given: the split is then the best of those
    whose traffic fits into that time.
**Fails when:** tokens are spread evenly over experts: then the split gains little over a choice for the layer.
**Cost:** O(E^2): each of the E + 1 splits is summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from mixwell.core.method import method
from mixwell.mixing import check_above


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A processor: operations and bytes a second."""

    flops: float
    bandwidth: float

    def __post_init__(self) -> None:
        check_above(self, flops=0, bandwidth=0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the split."""

    many: Unit = Unit(flops=1e15, bandwidth=3.35e12)  # strong in operations
    near: Unit = Unit(flops=1e14, bandwidth=1.3e13)  # near memory, strong in bandwidth
    number_bytes: float = 2.0  # b, bytes of a weight's number
    shared: float | None = None  # bytes a second that both draw at once; None: each has its own

    def __post_init__(self) -> None:
        check_above(self, number_bytes=0, shared=0)


class Split(NamedTuple):
    """Which experts run where, and how long the layer takes in seconds."""

    many: list[int]
    near: list[int]
    seconds: float


def seconds(unit: Unit, rows: int, size: int, number_bytes: float) -> float:
    """How long a unit takes for `rows` rows with weights of `size` numbers; none without rows."""
    if rows == 0:
        return 0.0
    computing = 2 * rows * size / unit.flops
    moving = number_bytes * size / unit.bandwidth
    return max(computing, moving)


def crossover(config: Config) -> float:
    """Rows n* up to which the unit near memory is the faster one, where it is bound by operations."""
    near, many = config.near, config.many
    return config.number_bytes * near.flops / (2 * many.bandwidth)


@method(title="Experts split between two processors", paper="Duplex: A Device for Large Language Models with Mixture "
        "of Experts, Grouped Query Attention, and Continuous Batching", year=2024)
def processors(counts_E: Sequence[int], size: int, config: Config) -> Split:
    """The best split of experts with weights of `size` numbers each that are given so many tokens.

    Raises `ValueError` for a count below zero.
    """
    if any(count < 0 for count in counts_E):
        raise ValueError(f"counts are {list(counts_E)}; expected tokens of each expert, none below zero")
    busiest = sorted(range(len(counts_E)), key=lambda e: -counts_E[e])
    splits = []
    for k in range(len(busiest) + 1):
        split = _split(busiest[:k], busiest[k:], counts_E, size, config)
        splits.append(split)
    return min(splits, key=lambda split: split.seconds)


def _split(many: list[int], near: list[int], counts_E: Sequence[int], size: int, config: Config) -> Split:
    """A split and its time."""
    expert_bytes = size * config.number_bytes
    first = [seconds(config.many, counts_E[e], size, config.number_bytes) for e in many]
    second = [seconds(config.near, counts_E[e], size, config.number_bytes) for e in near]
    used = sum(count > 0 for count in counts_E)
    drawn = used * expert_bytes / config.shared if config.shared else 0.0
    longest = max(sum(first), sum(second), drawn)
    return Split(many, near, longest)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Sixteen experts, some of them busy."""
    drawn = torch.randint(0, 12, (16,), generator=generator)
    counts = drawn.square().tolist()
    return {"counts_E": counts, "size": 4096 * 1024, "config": Config()}
