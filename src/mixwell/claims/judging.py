"""What a claim's numbers say: the outcome with its intervals, and the words for it, made from the numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixwell.claims.claim import Claim, Comparison, Series
from mixwell.claims.rule import LOOKS, Interval, Outcome, interval, together
from mixwell.core import units


@dataclass(frozen=True)
class Verdict:
    """A comparison, what its gains came to, and what that says."""

    comparison: Comparison
    interval: Interval

    @property
    def outcome(self) -> Outcome:
        """The interval against the margin."""
        return self.interval.against(self.comparison.at_least)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found, asked = self.interval, self.comparison
        return {"effect": found.mean, "spread": found.spread, "interval": [found.low, found.high],
                "margin": asked.at_least, "relative": asked.relative}

    def words(self) -> str:
        """`error: gain −1.2 % (−3.0 to 0.5 %), more than −2.0 % asked for`."""
        said = self.to_dict()
        margin = amount(said["margin"], said["relative"])
        return f"{self.comparison.words()}: gain {gain(said)}, more than {margin} asked for"


def verdicts(claim: Claim, values: Series, seeds: int) -> list[Verdict]:
    """A verdict on the claim's own comparison and on each of its conditions, from the first `seeds` seeds."""
    first = {name: series[:seeds] for name, series in values.items()}
    number = len(claim.comparisons)
    found = []
    for one in claim.comparisons:
        gains = one.gains(first)
        found.append(Verdict(one, interval(gains, number)))
    return found


def judged(claim: Claim, values: Series, seeds: int) -> dict[str, Any]:
    """Outcome, effect, interval, margin, conditions and note as an evidence file holds them."""
    every = verdicts(claim, values, seeds)
    outcome = together([one.outcome for one in every])
    conditions = [_condition(one) for one in every[1:]]
    return {"outcome": outcome, **every[0].to_dict(), "seeds": seeds, "conditions": conditions,
            "note": note(every, seeds)}


def _condition(verdict: Verdict) -> dict[str, Any]:
    name = verdict.comparison.words()
    return {"condition": name, "outcome": verdict.outcome, **verdict.to_dict()}


def note(every: list[Verdict], seeds: int) -> str:
    """Why it did not hold: the comparisons that contradict it, else those that leave it open."""
    outcome = together([one.outcome for one in every])
    if outcome == "held":
        return ""
    reasons = [one.words() for one in every if one.outcome == outcome]
    said = "; ".join(reasons)
    if outcome == "contradicted":
        return f"Against it: {said}."
    after = "after all looks" if seeds == LOOKS[-1] else f"after {seeds} seeds; more may decide"
    return f"Open {after}: {said}."


def gain(said: Mapping[str, Any]) -> str:
    """`+0.031 (+0.024 to +0.038)`, from a verdict as data."""
    relative = said["relative"]
    low, high = (amount(end, relative) for end in said["interval"])
    mean = amount(said["effect"], relative)
    return f"{mean} ({low} to {high})"


def amount(value: float, relative: bool) -> str:
    """A gain as it is written: `+0.031`, or `+3.1 %` of the baseline."""
    written = units.percent(value) if relative else units.number(value)
    return f"+{written}" if value > 0 else written
