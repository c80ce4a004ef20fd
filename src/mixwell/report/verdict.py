"""Who won: finished models at an equal budget of tokens, FLOPs or seconds, by held-out text, over seeds.

Two sides are compared where both trained to the end of their schedules on budgets that agree to within `NEAR`. Bits
per byte of the final models on held-out text decide, paired by seed: a side has won where the 95 % interval of
Student's t for its gain over every other side lies above zero. One seed names no winner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mixwell.core import units
from mixwell.report.sides import Side
from mixwell.report.statistics import Interval, interval

UNITS = {"tokens": "", "flops": "FLOP", "seconds": "s"}  # budget -> its unit
NAMES = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}
# Budgets that differ by no more than this share are called equal; seconds are planned from a timing and vary with the
# machine's other work.
NEAR = {"tokens": 0.05, "flops": 0.05, "seconds": 0.1}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Sides that spent equally much of one budget; without any such sides, `obstacle` says why."""

    budget: str  # tokens, flops or seconds
    ranked: tuple[Side, ...] = ()  # lowest bits per byte first
    gains: tuple[Interval, ...] = ()  # share by which the first lies below each of the others, over paired seeds
    obstacle: str = ""
    nearest: tuple[Side, Side] | None = None  # of a budget without equals: less spent, more spent

    @property
    def seeds(self) -> int:
        """Seeds on which the verdict rests."""
        return min((gain.count for gain in self.gains), default=0)

    @property
    def won(self) -> bool:
        """Whether the first is better than every other one beyond what seeds do."""
        return bool(self.gains) and self.seeds > 1 and all(gain.low > 0 for gain in self.gains)

    @property
    def unclear(self) -> Interval:
        """The gain that is nearest to none."""
        return min(self.gains, key=lambda gain: gain.low)

    @property
    def amount(self) -> str:
        """The budget, as the mean of what the sides spent."""
        return amount(self.budget, math.fsum(s.spent[self.budget] for s in self.ranked) / len(self.ranked))

    @property
    def spread(self) -> float:
        """By which share the largest of the equal budgets exceeds the smallest."""
        spent = [side.spent[self.budget] for side in self.ranked]
        return max(spent) / min(spent) - 1


def amount(budget: str, value: float) -> str:
    """A budget with its unit."""
    return units.seconds(value) if budget == "seconds" else units.si(value, UNITS[budget])


def judge(found: Sequence[Side], budget: str) -> list[Verdict]:
    """A verdict for each set of sides with equal budgets; a single one with an obstacle where there is no such set."""
    if len(found) < 2:
        return [Verdict(budget=budget, obstacle="there is one side only")]
    able = [side for side in found if side.scores and side.spent[budget] > 0]
    if len(able) < 2:
        missing = ", ".join(side.name for side in found if side not in able)
        return [Verdict(budget=budget, obstacle=f"no held-out text was read for {missing}")]
    if sets := equals(able, budget):
        return [_ranked(budget, group) for group in sets]
    spent = ", ".join(f"{side.name} {amount(budget, side.spent[budget])}" for side in able)
    nearest = _nearest(able, budget)
    aside = _better_for_less(*nearest, budget) if nearest else ""
    return [Verdict(budget=budget, obstacle=f"no two sides spent equally many {NAMES[budget]} ({spent}){aside}",
                    nearest=nearest)]


def _better_for_less(less: Side, more: Side, budget: str) -> str:
    """Says where the side that spent less is the better one: no verdict, but more of it would hardly turn it round."""
    if less.score >= more.score:
        return ""
    fewer = units.percent(1 - less.spent[budget] / more.spent[budget], 0)
    return (f"; with {fewer} fewer than {more.name}, {less.name} is lower all the same, by "
            f"{units.percent(1 - less.score / more.score, 2)}")


def equals(found: Sequence[Side], budget: str) -> list[list[Side]]:
    """The largest sets of two sides or more whose budgets agree; a step on the way to another side is left out."""
    rising = sorted(found, key=lambda side: side.spent[budget])
    sets: list[list[Side]] = []
    for start, least in enumerate(rising):
        group = [side for side in rising[start:] if side.spent[budget] <= (1 + NEAR[budget]) * least.spent[budget]]
        group = [side for side in group if not any(other.builds_on(side) for other in group)]
        if len(group) > 1 and not any(set(map(id, group)) <= set(map(id, other)) for other in sets):
            sets.append(group)
    return sets


def gain(better: Side, worse: Side) -> Interval:
    """Share by which `better` lies below `worse`, over the seeds that both have; without any, that of the means."""
    shared = [seed for seed in better.scores if seed in worse.scores]
    if not shared:
        return Interval(1 - better.score / worse.score, math.nan, 0)
    return interval([1 - better.scores[seed] / worse.scores[seed] for seed in shared])


def _ranked(budget: str, group: Sequence[Side]) -> Verdict:
    ranked = sorted(group, key=lambda side: side.score)
    return Verdict(budget=budget, ranked=tuple(ranked), gains=tuple(gain(ranked[0], other) for other in ranked[1:]))


def _nearest(found: Sequence[Side], budget: str) -> tuple[Side, Side] | None:
    """The two sides whose budgets are least apart, of which neither is a step on the way to the other."""
    pairs = [(a, b) for a in found for b in found
             if a.spent[budget] < b.spent[budget] and not a.builds_on(b) and not b.builds_on(a)]
    return min(pairs, key=lambda pair: pair[1].spent[budget] / pair[0].spent[budget], default=None)
