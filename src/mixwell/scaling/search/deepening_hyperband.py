"""Iterative deepening Hyperband: when the largest budget turns out too small, its trials are carried on, not repeated.

**Equation:** depth m: R = r eta^m, brackets s = m..0 start n_s = ceil((m + 1) / (s + 1) eta^s) configurations at
    R eta^-s epochs; rung i keeps floor(n_s eta^-i). m + 1: bracket s becomes s + 1 with the same start, the missing
    configurations are drawn, and rungs are filled over old and new. discarding: rungs as a fresh Hyperband would fill
    them; preserving: those and whoever was in the rung; efficient: whoever was in the rung, and the best for the rest.
**Shapes:** trials in; one trial, its loss and the epochs spent out.
**Reference:** Brandt et al. 2023 (2302.00511).
**Differs:** the order of brackets and the end of a rung are not asynchronous. Brackets never share configurations.
**Fails when:** early losses order the trials wrongly: efficient keeps an old trial where a new one is better.
**Cost:** about (m + 1) R epochs a bracket and m + 1 brackets, less what the depths before have trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from mixwell.core.method import method
from mixwell.scaling.search._planted import power_curves
from mixwell.scaling.trials import Found, Trials, lowest

VARIANTS = ("discarding", "preserving", "efficient")
Rungs = list[list[int]]  # of one bracket: the trials that reach each rung, the start first


@dataclass(frozen=True, kw_only=True)
class Config:
    """The budgets before and after; `ValueError` for a value out of range."""

    eta: int = 3  # one in eta goes on, at least 2
    least: int = 1  # r: epochs of the lowest rung, at least 1
    first_depth: int = 2  # m of the first Hyperband, 0 or more
    last_depth: int = 3  # m of the last, at least the first
    variant: str = "efficient"  # what becomes of the rungs of the depth before

    def __post_init__(self) -> None:
        if self.eta < 2 or self.least < 1:
            raise ValueError(f"eta={self.eta}, least={self.least}; expected at least 2 and 1")
        if not 0 <= self.first_depth <= self.last_depth:
            raise ValueError(f"depths {self.first_depth} and {self.last_depth}; expected 0 or more, the last no less")
        if self.variant not in VARIANTS:
            raise ValueError(f"variant is {self.variant!r}; expected one of {', '.join(VARIANTS)}")


@method(title="Iterative deepening Hyperband", year=2023, paper="Iterative Deepening Hyperband")
def deepening_hyperband(trials: Trials, config: Config, generator: np.random.Generator) -> Found:
    """The best trial of the largest budget, least eta^last_depth epochs."""
    needed = sum(starts(config.last_depth, config.eta))
    fresh = iter(trials.drawn(needed, generator))
    brackets: list[Rungs] = []
    for depth in range(config.first_depth, config.last_depth + 1):
        brackets = _padded(brackets, depth)
        counts = starts(depth, config.eta)
        for bracket, count in enumerate(counts):
            start, *upper = brackets[bracket]
            missing = count - len(start)
            joined = [*start, *islice(fresh, missing)]
            brackets[bracket] = _halved(trials, config, bracket, [joined, *upper])
    top = config.least * config.eta**config.last_depth
    ended = [trial for rungs in brackets for trial in rungs[-1]]
    final = trials.losses(ended, top)
    return trials.found(final)


def starts(depth: int, eta: int) -> list[int]:
    """How many configurations each bracket starts with; bracket b starts at least eta^b epochs."""
    counts = []
    for bracket in range(depth + 1):
        halvings = depth - bracket
        wanted = (depth + 1) * eta**halvings
        counts.append(-(-wanted // (halvings + 1)))
    return counts


def _padded(brackets: list[Rungs], depth: int) -> list[Rungs]:
    """The brackets of a depth with the rungs that were filled before it."""
    padded = []
    for bracket in range(depth + 1):
        rungs: Rungs = [[] for _ in range(depth + 1 - bracket)]
        if bracket < len(brackets):
            old = brackets[bracket]
            rungs[: len(old)] = old
        padded.append(rungs)
    return padded


def _halved(trials: Trials, config: Config, bracket: int, old: Rungs) -> Rungs:
    """A bracket's rungs, filled from the start that comes in `old[0]`."""
    start, *upper = old
    filled = [start]
    epochs = config.least * config.eta**bracket
    places = len(start)
    for before in upper:
        losses = trials.losses(filled[-1], epochs)
        places //= config.eta
        epochs *= config.eta
        higher = promoted(losses, before, places, config.variant)
        filled.append(higher)
    return filled


def promoted(losses: dict[int, float], before: list[int], places: int, variant: str) -> list[int]:
    """Who goes up from a rung of these losses, where `before` went up at the depth before."""
    best = lowest(losses, places)
    if variant == "discarding":
        return best
    if variant == "preserving":
        new = [trial for trial in best if trial not in before]
        return [*before, *new]
    others = {trial: loss for trial, loss in losses.items() if trial not in before}
    return [*before, *lowest(others, places - len(before))]


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Nine epochs turn into 27."""
    return {"trials": power_curves(60, 27, generator), "config": Config()}
