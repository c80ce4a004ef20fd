"""What a claim's numbers say: the outcome with its intervals, and the words for it, made from the numbers alone."""

from __future__ import annotations

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
        found, asked = self.interval, self.comparison
        mean, low, high, margin = (amount(value, asked.relative)
                                   for value in (found.mean, found.low, found.high, asked.at_least))
        return f"{asked.words()}: gain {mean} ({low} to {high}), more than {margin} asked for"


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
    own, *conditions = verdicts(claim, values, seeds)
    every = [own, *conditions]
    outcome = together([one.outcome for one in every])
    listed = [{"condition": one.comparison.words(), "outcome": one.outcome, **one.to_dict()} for one in conditions]
    return {"outcome": outcome, **own.to_dict(), "seeds": seeds, "conditions": listed, "note": note(every, seeds)}


def note(every: list[Verdict], seeds: int) -> str:
    """Why it did not hold: the comparisons that contradict it, else those that leave it open."""
    outcome = together([one.outcome for one in every])
    if outcome == "held":
        return ""
    reasons = [one.words() for one in every if one.outcome == outcome]
    told = "; ".join(reasons)
    if outcome == "contradicted":
        return f"Against it: {told}."
    after = "after all looks" if seeds == LOOKS[-1] else f"after {seeds} seeds; more may decide"
    return f"Open {after}: {told}."


def amount(value: Any, relative: bool) -> str:
    """A gain as it is written: `+0.031`, or `+3.1 %` of the baseline."""
    sign = "+" if units.is_number(value) and value > 0 else ""
    return sign + (units.percent(value) if relative else units.number(value))
