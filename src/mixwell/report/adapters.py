"""Adapters of one run beside each other: size, time, what they learnt on their text and forgot of the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mixwell.core import units
from mixwell.report.records import RunRecord, StageRecord, figure, numbers
from mixwell.report.sides import Side, sides
from mixwell.report.statistics import Interval, interval

HEAD = ["adapter", "trained", "file", "time", "rate", "on its text", "change there", "elsewhere"]


def adapters(run: RunRecord) -> dict[str, Any]:
    """A table of the sides that end in an adaptation; empty where there is none."""
    adapted = [side for side in sides(run) if side.first.kind == "adapt"]
    if not adapted:
        return {}
    rows = [_row(run, side) for side in adapted]
    return {"head": HEAD, "rows": rows, "sentences": _sentences(run, adapted)}


def _row(run: RunRecord, side: Side) -> list[str]:
    first = side.first
    result = first.result
    count = result.get("trained_parameters")
    size = result.get("adapter_bytes")
    ends = list(side.ends.values())
    seconds = _average([figure(end.result, "seconds") for end in ends])
    there = _average([_mean(_bits(end), _own(end)) for end in ends])
    learnt, forgotten = changes(run, side)
    costs = [units.whole(count), units.si(size, "B"), units.seconds(seconds)]
    return [side.name, *costs, _rates(side), units.fixed(there, 3), _signed(learnt), _signed(forgotten)]


def _bits(stage: StageRecord) -> dict[str, float]:
    """Bits per byte by domain."""
    told = stage.evaluation.get("bits_per_byte")
    return numbers(told)


def changes(run: RunRecord, side: Side) -> tuple[Interval, Interval]:
    """Bits per byte against the base's, over seeds: of the domains that it was trained on, and of all others."""
    learnt, forgotten = [], []
    for end in side.ends.values():
        base = run.parent(end)
        if base is None:
            continue
        before = _bits(base)
        after = _bits(end)
        apart = {name: after[name] - before[name] for name in after if name in before}
        own = _own(end)
        others = [name for name in apart if name not in own]
        learnt.append(_mean(apart, own))
        forgotten.append(_mean(apart, others))
    return _over_seeds(learnt), _over_seeds(forgotten)


def _own(stage: StageRecord) -> list[str]:
    """The domains that were read in training."""
    ledger = numbers(stage.result.get("ledger"))
    return [name for name, tokens in ledger.items() if tokens > 0]


def _mean(values: Mapping[str, float], names: Sequence[str]) -> float:
    found = [values[name] for name in names if name in values]
    return _average(found)


def _average(values: Sequence[float]) -> float:
    if not values:
        return math.nan
    return math.fsum(values) / len(values)


def _over_seeds(values: Sequence[float]) -> Interval:
    known = [value for value in values if math.isfinite(value)]
    return interval(known) if known else Interval(math.nan, math.nan, 0)


def _signed(change: Interval) -> str:
    """`−0.123 ± 0.010`"""
    if not math.isfinite(change.mean):
        return units.ABSENT
    sign = "−" if change.mean < 0 else "+"
    size = abs(change.mean)
    middle = f"{sign}{units.fixed(size, 3)}"
    if change.count < 2:
        return middle
    half = units.fixed(change.half, 3)
    return f"{middle} ± {half}"


def _rates(side: Side) -> str:
    """The learning rates that its seeds kept."""
    found = []
    for end in side.ends.values():
        training = end.config.get("training", {})
        rate = end.result.get("lr") or training.get("lr")
        found.append(units.number(rate, 2))
    return ", ".join(dict.fromkeys(found))


def _sentences(run: RunRecord, adapted: Sequence[Side]) -> list[str]:
    """How even the comparison is, and who learnt most and forgot least beyond what seeds do."""
    sizes = [figure(side.first.result, "trained_parameters") for side in adapted]
    tried = [len(side.first.result.get("rates") or [None]) for side in adapted]
    found: list[str] = []
    if len(adapted) < 2:
        return found
    spread = max(sizes) / min(sizes) - 1
    found.append(f"Trained parameters differ by {units.percent(spread, 0)} at most.")
    found.append(_tries(tried))
    found += _first(run, adapted, 0, "learnt most of its text", "its text")
    found += _first(run, adapted, 1, "forgot least", "the rest")
    return found


def _tries(tried: Sequence[int]) -> str:
    if len(set(tried)) > 1:
        return "They tried unlike numbers of learning rates, so the comparison is not even."
    count = tried[0]
    if count < 2:
        return "Each was trained at one learning rate."
    return f"Each tried {units.counted(count, 'learning rate')} and kept that of the lowest loss in training."


def _first(run: RunRecord, adapted: Sequence[Side], place: int, what: str, where: str) -> list[str]:
    """Who stands first by a change, where its interval over paired seeds lies apart from the second's.

    Nothing where fewer than two changes are known: nothing was evaluated, or all domains were trained on.
    """
    means = {side.name: changes(run, side)[place].mean for side in adapted}
    known = [side for side in adapted if math.isfinite(means[side.name])]
    ranked = sorted(known, key=lambda side: means[side.name])
    if len(ranked) < 2:
        return []
    best, second = ranked[:2]
    apart = _paired(best, second, place)
    if apart.count > 1 and apart.high < 0:
        gap = units.fixed(-apart.mean, 3)
        return [f"{best.name} {what}: {gap} bits per byte below {second.name} over {apart.count} seeds."]
    return [f"On {where}, {best.name} and {second.name} are not told apart by these seeds."]


def _paired(one: Side, other: Side, place: int) -> Interval:
    """The difference of two adapters on the domains trained on (0) or on all others (1), by seed."""
    found = []
    for seed, end in one.ends.items():
        if seed in other.ends:
            ours = _bits(end)
            theirs = _bits(other.ends[seed])
            own = _own(end)
            names = [name for name in ours if (name in own) == (place == 0)]
            found.append(_mean(ours, names) - _mean(theirs, names))
    return _over_seeds(found)
