"""What claims share when they judge."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from mixwell.core.evidence import Evidence

ERROR = "held-out squared error, share of the targets' variance"
BITS = "bits per byte of held-out text, mean over four domains"


def no_worse(method: Sequence[float], baseline: Sequence[float], margin: float) -> bool:
    """Whether the method's mean is at most (1 + margin) times the baseline's."""
    return statistics.fmean(method) <= (1 + margin) * statistics.fmean(baseline)


def provided(evidence: Evidence, condition: bool, why_not: str, **values: Sequence[float]) -> Evidence:
    """The evidence with more values beside; held only where `condition` is true as well."""
    kept = {**evidence.values, **{name: list(series) for name, series in values.items()}}
    if condition:
        return replace(evidence, values=kept)
    return replace(evidence, values=kept, outcome="did not hold", note=f"{why_not} {evidence.note}".strip())
