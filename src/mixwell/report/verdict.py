"""Who won: finished models at an equal budget of tokens, FLOPs or seconds, by held-out text, over seeds.

Two sides are compared where both trained to the end of their schedules on budgets that agree to within `NEAR`. Bits
per byte of the final models on held-out text decide, paired by seed: a side has won where the 95 % interval of
Student's t for its gain over every other side lies above zero. One seed names no winner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

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
        if self.seeds < 2:
            return False
        return all(gain.low > 0 for gain in self.gains)

    @property
    def unclear(self) -> Interval:
        """The gain that is nearest to none."""
        return min(self.gains, key=lambda gain: gain.low)

    @property
    def amount(self) -> str:
        """The budget, as the mean of what the sides spent."""
        spent = [side.spent[self.budget] for side in self.ranked]
        mean = math.fsum(spent) / len(spent)
        return amount(self.budget, mean)

    @property
    def spread(self) -> float:
        """By which share the largest of the equal budgets exceeds the smallest."""
        spent = [side.spent[self.budget] for side in self.ranked]
        return max(spent) / min(spent) - 1


def amount(budget: str, value: float) -> str:
    """A budget with its unit."""
    if budget == "seconds":
        return units.seconds(value)
    return units.si(value, UNITS[budget])


def judge(found: Sequence[Side], budget: str) -> list[Verdict]:
    """A verdict for each set of sides with equal budgets; a single one with an obstacle where there is no such set."""
    if len(found) < 2:
        return [Verdict(budget=budget, obstacle="there is one side only")]
    able = [side for side in found if side.scores and side.spent[budget] > 0]
    if len(able) < 2:
        missing = [side.name for side in found if side not in able]
        return [Verdict(budget=budget, obstacle=f"no held-out text was read for {', '.join(missing)}")]
    sets = equals(able, budget)
    if not sets:
        return [_unequal(budget, able)]
    return [_ranked(budget, group) for group in sets]


def _unequal(budget: str, found: Sequence[Side]) -> Verdict:
    """No verdict, and how far the sides are from one."""
    spent = [f"{side.name} {amount(budget, side.spent[budget])}" for side in found]
    obstacle = f"no two sides spent equally many {NAMES[budget]} ({', '.join(spent)})"
    nearest = _nearest(found, budget)
    if nearest:
        obstacle += _better_for_less(*nearest, budget)
    return Verdict(budget=budget, obstacle=obstacle, nearest=nearest)


def _better_for_less(less: Side, more: Side, budget: str) -> str:
    """Says where the side that spent less is the better one: no verdict, but more of it would hardly turn it round."""
    if less.score >= more.score:
        return ""
    fewer = units.percent(1 - less.spent[budget] / more.spent[budget], 0)
    lower = units.percent(1 - less.score / more.score, 2)
    return f"; with {fewer} fewer than {more.name}, {less.name} is lower all the same, by {lower}"


def equals(found: Sequence[Side], budget: str) -> list[list[Side]]:
    """The largest sets of two sides or more whose budgets agree; a step on the way to another side is left out."""
    rising = sorted(found, key=lambda side: side.spent[budget])
    sets: list[list[Side]] = []
    for start, least in enumerate(rising):
        most = (1 + NEAR[budget]) * least.spent[budget]
        near = [side for side in rising[start:] if side.spent[budget] <= most]
        group = [side for side in near if not any(other.builds_on(side) for other in near)]
        if len(group) > 1 and not _contained(group, sets):
            sets.append(group)
    return sets


def _contained(group: Sequence[Side], sets: Sequence[Sequence[Side]]) -> bool:
    """Whether one of the sets holds all of the group."""
    own = {id(side) for side in group}
    return any(own <= {id(side) for side in other} for other in sets)


def gain(better: Side, worse: Side) -> Interval:
    """Share by which `better` lies below `worse`, over the seeds that both have; without any, that of the means."""
    ours, theirs = better.scores, worse.scores
    shared = [seed for seed in ours if seed in theirs]
    if not shared:
        return Interval(1 - better.score / worse.score, math.nan, 0)
    gains = [1 - ours[seed] / theirs[seed] for seed in shared]
    return interval(gains)


def _ranked(budget: str, group: Sequence[Side]) -> Verdict:
    ranked = sorted(group, key=lambda side: side.score)
    best, *others = ranked
    gains = [gain(best, other) for other in others]
    return Verdict(budget=budget, ranked=tuple(ranked), gains=tuple(gains))


def _nearest(found: Sequence[Side], budget: str) -> tuple[Side, Side] | None:
    """The two sides whose budgets are least apart, of which neither is a step on the way to the other."""
    pairs = []
    for less, more in permutations(found, 2):
        related = less.builds_on(more) or more.builds_on(less)
        if less.spent[budget] < more.spent[budget] and not related:
            pairs.append((less, more))
    return min(pairs, key=lambda pair: pair[1].spent[budget] / pair[0].spent[budget], default=None)
