"""When a claim is decided: Student's intervals of paired gains at five looks, with the error kept over all of them.

A gain is what the method is better by at one seed, both sides given the same seed. After 8, 12, 16, 24 and 32 seeds
the interval of the mean gain is compared with the margin, the gain that the claim asks for:

    held          the interval lies above the margin
    contradicted  it lies below: for the margin 0 the method is worse, for the margin -0.02 worse by more than 0.02
    undecided     it holds the margin; more seeds follow, and after the last look it stays so

Who looks five times errs more often than who looks once. Every look therefore has the same level, 1.5 % instead of 5 %
(Pocock 1977 for normal gains and equal steps; here by simulation for Student's t and these looks), which errs at 2.5 %
to either side over all looks where the mean gain is the margin itself.

A claim with conditions holds where all its intervals lie above their margins: each condition is tested at the full
level, for a wrong "held" needs all of them to err (an intersection-union test, Berger 1982). One condition contradicts
it; the upper ends are the wider for their number (Bonferroni), so that a wrong "contradicted" stays at 2.5 %.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mixwell.report.statistics import quantile

LOOKS = (8, 12, 16, 24, 32)  # seeds
LEVEL = 0.015  # of each look, two-sided
ERROR = 0.05  # over all looks, both sides together
POWER = {0.5: 0.66, 1.0: 0.99, 2.0: 1.0}  # mean gain over the margin, in standard deviations -> chance of "held"

Outcome = Literal["held", "contradicted", "undecided"]


@dataclass(frozen=True)
class Interval:
    """The mean gain, its standard deviation over seeds, and where it may lie."""

    mean: float
    spread: float
    low: float
    high: float

    def against(self, margin: float) -> Outcome:
        """What the interval says of a margin."""
        if self.low > margin:
            return "held"
        return "contradicted" if self.high < margin else "undecided"


def interval(gains: Sequence[float], comparisons: int = 1) -> Interval:
    """Where the mean of two or more gains may lie, at one look, for one of a claim's `comparisons`."""
    count = len(gains)
    mean, spread = statistics.fmean(gains), statistics.stdev(gains)
    error = spread / math.sqrt(count)
    below = _quantile(count - 1, LEVEL) * error
    above = _quantile(count - 1, LEVEL / comparisons) * error
    return Interval(mean, spread, mean - below, mean + above)


@functools.cache
def _quantile(freedom: int, level: float) -> float:
    return quantile(freedom, 1 - level)


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of a claim from those of its comparisons."""
    if "contradicted" in outcomes:
        return "contradicted"
    return "undecided" if "undecided" in outcomes else "held"


def look(seeds: int) -> int:
    """The last look that so many seeds allow; 0 before the first."""
    passed = [count for count in LOOKS if count <= seeds]
    return max(passed, default=0)


def next_look(seeds: int) -> int:
    """How many seeds the next look needs; after the last one, as many as that."""
    ahead = [count for count in LOOKS if count > seeds]
    return min(ahead, default=LOOKS[-1])
