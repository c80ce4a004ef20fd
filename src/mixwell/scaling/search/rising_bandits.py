"""Rising bandits: an arm is dropped once the most it can still gain leaves it behind another's present best.

**Equation:** b_k(t) = lowest loss of arm k in t pulls, w_k = (b_k(t - alpha) - b_k(t)) / alpha; present b_k, in reach
    max(floor, b_k - w_k T) with T the pulls left in all. Arm i goes once its reach is above some b_j.
**Shapes:** trials in, where a trial is an arm and an epoch is a pull; the best arm out.
**Reference:** Li et al. 2020 (2012.04371), the algorithm without costs.
**Differs:** losses fall where scores rise in the paper. The slope is over alpha steps; the released code divides three
    steps by four.
**Fails when:** best losses are not convex in pulls: an arm that rests for alpha pulls looks finished. T is not shared
    among arms, so that early bounds drop nobody.
**Cost:** `pulls` pulls; O(K) a round for K arms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.method import method
from mixwell.scaling.search._planted import power_curves
from mixwell.scaling.trials import Found, Trials


@dataclass(frozen=True, kw_only=True)
class Config:
    """The budget and how a slope is read; `ValueError` for a value out of range."""

    pulls: int = 60  # in all, at least 1
    history: int = 4  # alpha: pulls that a slope spans, at least 1
    floor: float = 0.0  # the least loss that there can be

    def __post_init__(self) -> None:
        if self.pulls < 1 or self.history < 1:
            raise ValueError(f"pulls={self.pulls}, history={self.history}; expected at least 1 of each")


@method(title="Rising bandits", year=2020, paper="Efficient Automatic CASH via Rising Bandits")
def rising_bandits(trials: Trials, config: Config, generator: np.random.Generator) -> Found:
    """The arm of the lowest loss; arms are pulled in turn, in a random order."""
    order = trials.drawn(len(trials), generator)
    curves: dict[int, list[float]] = {arm: [] for arm in order}
    alive = order
    left = config.pulls
    while left and (still := _open(curves, alive, trials.most)):
        pulled = still[:left]
        for arm in pulled:
            _pull(trials, arm, curves[arm])
        left -= len(pulled)
        alive = survivors(curves, alive, left, config)
    best = {arm: curve[-1] for arm, curve in curves.items() if curve}
    return trials.found(best)


def _open(curves: dict[int, list[float]], alive: list[int], most: int) -> list[int]:
    """The arms that can still be pulled."""
    return [arm for arm in alive if len(curves[arm]) < most]


def _pull(trials: Trials, arm: int, curve: list[float]) -> None:
    """One more pull: the curve's next lowest loss."""
    loss = trials.loss(arm, len(curve) + 1)
    lowest = min([loss, *curve[-1:]])
    curve.append(lowest)


def survivors(curves: dict[int, list[float]], alive: list[int], left: int, config: Config) -> list[int]:
    """The arms whose reach in `left` pulls is not above another's present best; all until each has a slope."""
    shortest = min(len(curves[arm]) for arm in alive)
    if shortest <= config.history:
        return alive
    best = min(curves[arm][-1] for arm in alive)
    return [arm for arm in alive if reach(curves[arm], left, config) <= best]


def reach(curve: list[float], left: int, config: Config) -> float:
    """The lowest loss that a convex curve can still come to."""
    now = curve[-1]
    before = curve[-1 - config.history]
    if before == now:  # also where all pulls diverged: infinity has no slope
        return now
    gained = before - now
    slope = gained / config.history
    reached = now - slope * left
    return max(config.floor, reached)


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Six arms."""
    return {"trials": power_curves(6, 40, generator), "config": Config(pulls=120)}
