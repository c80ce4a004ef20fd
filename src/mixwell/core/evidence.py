"""Evidence: what running a paper's claim showed, as a value that can be saved, printed and compared."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["held", "did not hold", "not testable here"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The outcome of one claim.

    `effect` is the mean over seeds of (method - baseline) in `metric`'s unit, signed so that positive favours the
    method; `spread` its standard deviation over seeds.
    """

    claim: str  # the paper's sentence, in our words
    outcome: Outcome
    metric: str = ""  # what was measured, with its unit
    effect: float | None = None
    spread: float | None = None
    seeds: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)  # name -> one value a seed
    note: str = ""  # why, where it did not hold or could not be tested

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def weigh(claim: str, metric: str, method: Sequence[float], baseline: Sequence[float], *,
          lower_is_better: bool = True, at_least: float = 0.0, note: str = "") -> Evidence:
    """Judge paired measurements, one of `method` and one of `baseline` for each seed (three or more).

    Held means: the mean paired gain exceeds `at_least` by two standard errors, so that a lucky draw is not evidence.
    """
    if len(method) != len(baseline) or len(method) < 3:
        raise ValueError(f"expected three or more pairs, got {len(method)} and {len(baseline)}")
    sign = -1.0 if lower_is_better else 1.0
    gains = [sign * (m - b) for m, b in zip(method, baseline)]
    mean, spread = statistics.fmean(gains), statistics.stdev(gains)
    error = spread / math.sqrt(len(gains))
    outcome: Outcome = "held" if mean - 2.0 * error > at_least else "did not hold"
    values = {"method": list(method), "baseline": list(baseline)}
    return Evidence(claim=claim, outcome=outcome, metric=metric, effect=mean, spread=spread, seeds=len(gains),
                    values=values, note=note)
