"""Trials of configurations that stop and go on: what a search may ask, and what its questions cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from mixwell.core.errors import MixwellError


class Found(NamedTuple):
    """What a search ends with."""

    trial: int  # its choice
    loss: float  # of the choice, where it was trained furthest
    spent: int  # epochs trained, of all trials


class Trials:
    """`count` configurations, each trained up to `most` epochs and kept where it stopped.

    `evaluate(trial, epochs)` trains on to `epochs` and returns the validation loss; a loss that is not finite counts as
    infinite, since a run that diverged is a result. `features_ND` describes the configurations, one row each.
    """

    def __init__(self, evaluate: Callable[[int, int], float], count: int, most: int,
                 features_ND: Any | None = None) -> None:
        if count < 1 or most < 1:
            raise ValueError(f"count={count}, most={most}; expected at least 1 of each")
        self.most = most
        self.reached_N = np.zeros(count, dtype=np.int64)
        self._evaluate = evaluate
        self._seen: dict[tuple[int, int], float] = {}
        self._features_ND: np.ndarray | None = None
        if features_ND is not None:
            self._features_ND = _described(features_ND, count)

    @classmethod
    def tabulated(cls, losses_NR: Any, features_ND: Any | None = None) -> Trials:
        """Trials whose losses after 1, 2, ..., R epochs are known."""
        known_NR = np.asarray(losses_NR, dtype=np.float64)
        if known_NR.ndim != 2 or not known_NR.size:
            raise MixwellError(f"losses of shape {known_NR.shape} came; expected a row a trial, a column an epoch.")
        count, most = known_NR.shape

        def known(trial: int, epochs: int) -> float:
            return float(known_NR[trial, epochs - 1])

        return cls(known, count, most, features_ND)

    def __len__(self) -> int:
        return len(self.reached_N)

    @property
    def spent(self) -> int:
        """Epochs trained so far, of all trials."""
        return int(self.reached_N.sum())

    @property
    def features_ND(self) -> np.ndarray:
        """A row a configuration; `MixwellError` where none were given."""
        if self._features_ND is None:
            raise MixwellError("the trials have no features; give a row of numbers for each configuration.")
        return self._features_ND

    def loss(self, trial: int, epochs: int) -> float:
        """The loss of a trial after so many epochs; only epochs beyond those it has are spent."""
        if not 1 <= epochs <= self.most:
            raise MixwellError(f"{epochs} epochs were asked of trials of 1 to {self.most}; mind the search's budget.")
        place = (trial, epochs)
        if place not in self._seen:
            value = float(self._evaluate(trial, epochs))
            if not math.isfinite(value):
                value = math.inf
            self._seen[place] = value
        before = self.reached_N[trial]
        self.reached_N[trial] = max(before, epochs)
        return self._seen[place]

    def losses(self, which: Iterable[int], epochs: int) -> dict[int, float]:
        """The losses of some trials after so many epochs."""
        return {trial: self.loss(trial, epochs) for trial in which}

    def drawn(self, count: int, generator: np.random.Generator) -> list[int]:
        """`count` trials in random order, none twice; `MixwellError` where there are fewer."""
        have = len(self)
        if count > have:
            raise MixwellError(f"the search needs {count} configurations and has {have}; add some or ask for less.")
        order_N = generator.permutation(have)
        return [int(trial) for trial in order_N[:count]]

    def found(self, losses: dict[int, float]) -> Found:
        """The best of some losses; `MixwellError` where all trials diverged."""
        trial, *_ = lowest(losses, 1)
        loss = losses[trial]
        if math.isinf(loss):
            raise MixwellError(f"all {len(losses)} trials diverged; look at their learning rates.")
        return Found(trial, loss, self.spent)


def lowest(losses: dict[int, float], count: int) -> list[int]:
    """The trials of the `count` lowest losses, the first come first among equals."""
    ranked = sorted(losses, key=losses.__getitem__)
    return ranked[:count]


def _described(features_ND: Any, count: int) -> np.ndarray:
    """Features with the right shape and no holes."""
    rows_ND = np.asarray(features_ND, dtype=np.float64)
    if rows_ND.ndim != 2 or len(rows_ND) != count:
        raise MixwellError(f"features of shape {rows_ND.shape} came for {count} trials; expected a row for each.")
    if not np.isfinite(rows_ND).all():
        raise MixwellError("a feature is not finite; give numbers for each configuration.")
    return rows_ND
