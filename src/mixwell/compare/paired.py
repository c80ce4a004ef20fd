"""What held-out documents can say of two models that both read them: a difference in bits per byte and its interval.

Bits per byte is a ratio of two sums over documents, so that the interval is the ratio estimator's (Cochran 1977,
section 6.4): long documents weigh more, and what varies is how far a document's difference lies from its bytes' share.
Domains are strata that count the same; their variances add up, with Satterthwaite's degrees of freedom (1946).

Legend: N documents of a domain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mixwell.report.statistics import Difference, Interval, holm, quantile, within

Sums = Mapping[str, np.ndarray]  # domain -> float64 [N]


@dataclass(frozen=True)
class Estimate:
    """A number of bits per byte, the variance that the choice of documents gives it, and that variance's freedom."""

    mean: float
    variance: float  # not a number where a domain has one document alone
    freedom: float
    count: int  # documents

    @property
    def interval(self) -> Interval:
        """The 95 % interval of Student's t."""
        if not math.isfinite(self.variance):
            return Interval(self.mean, math.nan, 1)
        half = quantile(_whole(self.freedom)) * math.sqrt(self.variance)
        return Interval(self.mean, half, self.count)

    @property
    def p(self) -> float:
        """Two-sided p of the hypothesis that the number is zero; not a number where its variance is not known."""
        if not math.isfinite(self.variance):
            return math.nan
        if self.variance == 0.0:
            return 1.0 if self.mean == 0.0 else 0.0
        return 1.0 - within(abs(self.mean) / math.sqrt(self.variance), _whole(self.freedom))


def _whole(freedom: float) -> int:
    """Rounded down: the wider interval."""
    return max(1, math.floor(freedom))


def level(bits: Sums, sizes: Sums) -> Estimate:
    """Mean bits per byte, every domain counting the same. sizes: UTF-8 bytes of the documents."""
    strata = [_ratio(bits[domain], sizes[domain]) for domain in sizes]
    return _together(strata)


def gap(bits: Sums, other: Sums, sizes: Sums) -> Estimate:
    """Bits per byte of one model less those of another on the same documents."""
    differences = {domain: bits[domain] - other[domain] for domain in sizes}
    return level(differences, sizes)


def _ratio(bits_N: np.ndarray, sizes_N: np.ndarray) -> Estimate:
    count = len(bits_N)
    whole = sizes_N.sum()
    mean = float(bits_N.sum() / whole)
    if count < 2:
        return Estimate(mean, math.nan, 0.0, count)
    off_N = bits_N - mean * sizes_N
    spread = float((off_N**2).sum())
    variance = count / (count - 1) * spread / whole**2
    return Estimate(mean, float(variance), count - 1.0, count)


def _together(strata: list[Estimate]) -> Estimate:
    """The mean of the strata."""
    number = len(strata)
    mean = math.fsum(one.mean for one in strata) / number
    count = sum(one.count for one in strata)
    parts = [one.variance / number**2 for one in strata]
    variance = math.fsum(parts)
    if not variance > 0.0:  # no spread at all, or one document alone
        return Estimate(mean, variance, float(count - number), count)
    shares = [part**2 / one.freedom for part, one in zip(parts, strata)]
    return Estimate(mean, variance, variance**2 / math.fsum(shares), count)


def differences(bits: Mapping[str, Sums], baseline: str, sizes: Sums) -> dict[str, Difference]:
    """Every other model less the baseline, with Holm's correction for as many comparisons."""
    gaps, decidable = {}, {}
    for name, own in bits.items():
        if name == baseline:
            continue
        gaps[name] = gap(own, bits[baseline], sizes)
        if math.isfinite(gaps[name].p):
            decidable[name] = gaps[name].p
    corrected = holm(decidable)
    found = {}
    for name, one in gaps.items():
        adjusted = corrected.get(name, math.nan)
        found[name] = Difference(one.interval, one.p, adjusted)
    return found
