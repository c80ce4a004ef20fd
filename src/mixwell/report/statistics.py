"""What a few seeds can say: Student's intervals, paired differences, and Holm's correction for several comparisons.

Reference: Student 1908; Holm 1979 (step-down correction).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixwell.lm.student import quantile as quantile
from mixwell.lm.student import within as within

LEVEL = 0.05  # share of false alarms that is put up with, over all comparisons of a report together


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with the half-width of its 95 % interval, which is not a number for fewer than two seeds."""

    mean: float
    half: float
    count: int

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half


@dataclass(frozen=True)
class Difference:
    """A variant against the baseline, paired by seed; lower is better, so that a gain is below zero."""

    interval: Interval
    p: float  # two-sided, of this comparison alone
    p_holm: float  # after the correction for all comparisons

    @property
    def supported(self) -> bool:
        """Whether the seeds support that there is a difference at all."""
        return self.p_holm < LEVEL


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of one value a seed."""
    count = len(values)
    mean = statistics.fmean(values)
    if count == 1:
        return Interval(mean, math.nan, count)
    half = quantile(count - 1) * statistics.stdev(values) / math.sqrt(count)
    return Interval(mean, half, count)


def differences(variants: Mapping[str, Mapping[int, float]], baseline: Mapping[int, float]) -> dict[str, Difference]:
    """Each variant (seed -> value) minus the baseline at the seeds that both have; those without a pair are left out.

    p is not a number where one seed is all there is; such a pair does not count as a comparison.
    """
    gaps = {}
    for name, values in variants.items():
        own = [value - baseline[seed] for seed, value in values.items() if seed in baseline]
        if own:
            gaps[name] = own
    alone = {name: paired_p(own) for name, own in gaps.items()}
    decidable = {name: p for name, p in alone.items() if not math.isnan(p)}
    corrected = holm(decidable)
    found = {}
    for name, own in gaps.items():
        found[name] = Difference(interval(own), alone[name], corrected.get(name, math.nan))
    return found


def paired_p(gaps: Sequence[float]) -> float:
    """Two-sided p of the hypothesis that the gaps' mean is zero; not a number for fewer than two gaps."""
    if len(gaps) < 2:
        return math.nan
    mean = statistics.fmean(gaps)
    error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    if error == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return 1.0 - within(abs(mean) / error, len(gaps) - 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: the smallest of m times m, the next times m - 1, and so on, never falling, at most 1."""
    adjusted: dict[str, float] = {}
    floor = 0.0
    rising = sorted(p_values, key=p_values.__getitem__)
    for rank, name in enumerate(rising):
        left = len(rising) - rank  # hypotheses that are not rejected yet
        corrected = min(1.0, left * p_values[name])
        floor = max(floor, corrected)
        adjusted[name] = floor
    return adjusted
