"""What claims share when they judge."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mixwell.core.evidence import Evidence

ERROR = "held-out squared error, share of the targets' variance"
BITS = "bits per byte of held-out text, mean over four domains"


def no_worse(method: Sequence[float], baseline: Sequence[float], margin: float) -> bool:
    """Whether the method's mean is at most (1 + margin) times the baseline's."""
    allowed = (1 + margin) * statistics.fmean(baseline)
    return statistics.fmean(method) <= allowed


def plus_one_per_cent(values: Sequence[float]) -> list[float]:
    """1.01 times each: a baseline that allows the method to be one per cent above it."""
    return [1.01 * value for value in values]


def minus_share(values: Sequence[float], share: float) -> float:
    """The least gain over the values of a method that may be worse by this share of their mean."""
    return -share * statistics.fmean(values)


def beside(evidence: Evidence, **values: Sequence[float]) -> Evidence:
    """The evidence with more values beside."""
    added = {name: list(series) for name, series in values.items()}
    return replace(evidence, values=evidence.values | added)


def provided(evidence: Evidence, condition: bool, why_not: str, **values: Sequence[float]) -> Evidence:
    """The evidence with more values beside; held only where `condition` is true as well."""
    kept = beside(evidence, **values)
    if condition:
        return kept
    note = f"{why_not} {evidence.note}".strip()
    return replace(kept, outcome="did not hold", note=note)


def at_no_more_error(evidence: Evidence, ours: Sequence[float], theirs: Sequence[float],
                     margin: float = 0.0) -> Evidence:
    """The evidence with both errors beside; held only where the method's is at most `margin` above the baseline's."""
    why_not = f"Its error is {_more(margin)}higher."
    return provided(evidence, no_worse(ours, theirs, margin), why_not, method_error=ours, baseline_error=theirs)


def at_no_more_bits(evidence: Evidence, ours: Sequence[float], theirs: Sequence[float],
                    margin: float = 0.0) -> Evidence:
    """The same of bits per byte."""
    why_not = f"Its bits per byte are {_more(margin)}higher."
    return provided(evidence, no_worse(ours, theirs, margin), why_not, method_bits=ours, baseline_bits=theirs)


def _more(margin: float) -> str:
    if not margin:
        return ""
    per_cent = 100 * margin
    return f"more than {per_cent:.0f} % "


def matched_accuracy(labels: np.ndarray, found: np.ndarray) -> float:
    """Share of rows in the right cluster under the best matching of clusters and labels."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    table = contingency_matrix(labels, found)
    row, column = linear_sum_assignment(-table)
    return float(table[row, column].sum()) / len(labels)
