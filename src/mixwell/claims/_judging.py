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
    return statistics.fmean(method) <= (1 + margin) * statistics.fmean(baseline)


def beside(evidence: Evidence, **values: Sequence[float]) -> Evidence:
    """The evidence with more values beside."""
    return replace(evidence, values={**evidence.values, **{name: list(series) for name, series in values.items()}})


def provided(evidence: Evidence, condition: bool, why_not: str, **values: Sequence[float]) -> Evidence:
    """The evidence with more values beside; held only where `condition` is true as well."""
    kept = beside(evidence, **values)
    return kept if condition else replace(kept, outcome="did not hold", note=f"{why_not} {evidence.note}".strip())


def matched_accuracy(labels: np.ndarray, found: np.ndarray) -> float:
    """Share of rows in the right cluster under the best matching of clusters and labels."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    table = contingency_matrix(labels, found)
    row, column = linear_sum_assignment(-table)
    return float(table[row, column].sum()) / len(labels)
