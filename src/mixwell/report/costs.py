"""What the sides of a run cost: parameters, and FLOPs and seconds of a training token, beside those of a dense side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mixwell.core import units
from mixwell.report.records import figure
from mixwell.report.sides import BUDGETS, Side
from mixwell.report.statistics import interval
from mixwell.report.verdict import amount

Cell = tuple[str, str]  # a figure and its small print


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one side takes; `time` and `flops` of a training token are given as multiples of the reference's, too."""

    side: str
    parameters: float
    active: float
    flops_per_token: float
    seconds_per_token: float
    time_factor: float
    flops_factor: float


def reference(found: Sequence[Side]) -> Side:
    """The side that others are multiples of: the first dense one, else the first."""
    dense = (side for side in found if not side.is_mixture)
    return next(dense, found[0])


def costs(found: Sequence[Side]) -> tuple[Cost, ...]:
    """Sizes and cost of a training token of every side."""
    if not found:
        return ()
    base = reference(found)
    return tuple(_cost(side, base) for side in found)


def _cost(side: Side, base: Side) -> Cost:
    result = side.first.result
    return Cost(
        side=side.name,
        parameters=figure(result, "parameters"), active=figure(result, "active_parameters"),
        flops_per_token=side.per_token("flops"), seconds_per_token=side.per_token("seconds"),
        time_factor=_ratio(side, base, "seconds"), flops_factor=_ratio(side, base, "flops"))


def _ratio(side: Side, base: Side, budget: str) -> float:
    below = base.per_token(budget)
    return side.per_token(budget) / below if below else math.nan


def cost_in_words(cost: Cost, base: str) -> str:
    """`moe: 14.2 M parameters, 6.30 M active; a training token takes 46 µs, 2.1 times dense's, and 1.5 times its FLOPs`

    base: name of the reference, which is no multiple of itself.
    """
    size = f"{units.si(cost.parameters)} parameters"
    if cost.active < cost.parameters:
        size = f"{size}, {units.si(cost.active)} active"
    words = f"{cost.side}: {size}; a training token takes {_microseconds(cost)}"
    if cost.side == base:
        return words
    time = units.number(cost.time_factor, 2)
    flops = units.number(cost.flops_factor, 2)
    return f"{words}, {time} times {base}'s, and {flops} times its FLOPs"


def _microseconds(cost: Cost) -> str:
    time = units.number(1e6 * cost.seconds_per_token)
    return f"{time}{units.THIN}µs"


def cost_table(found: Sequence[Side]) -> list[list[Cell]]:
    """A row for each side: name, score, parameters, FLOPs and time of a token, then what it spent of each budget."""
    base = reference(found)
    rows = []
    for side, cost in zip(found, costs(found)):
        active = units.si(cost.active) if side.is_mixture else "all"
        flops = units.si(cost.flops_per_token, "FLOP")
        flops_factor, time_factor = ("", "") if side is base else _factors(cost, base)
        row = [(side.name, ""), _score(side)]
        row.append((units.si(cost.parameters), f"{active} active"))
        row.append((flops, flops_factor))
        row.append((_microseconds(cost), time_factor))
        row += [(amount(budget, side.spent[budget]), "") for budget in BUDGETS]
        rows.append(row)
    return rows


def _factors(cost: Cost, base: Side) -> tuple[str, str]:
    """The multiples of the reference's FLOPs and time."""
    of_base = f"{units.THIN}× {base.name}"
    flops = units.number(cost.flops_factor, 2)
    time = units.number(cost.time_factor, 2)
    return flops + of_base, time + of_base


def _score(side: Side) -> Cell:
    """Bits per byte, and the half-width of its interval over seeds."""
    score = units.fixed(side.score, 3)
    if not side.scores:
        return score, ""
    over_seeds = interval(list(side.scores.values()))
    if over_seeds.count == 1:
        return score, "one seed"
    return score, f"± {units.fixed(over_seeds.half, 3)}, {over_seeds.count} seeds"
