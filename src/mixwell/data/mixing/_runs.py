"""Tables of runs that differ in their mixture: weights of the domains in, losses by target out.

Legend: N runs, D domains trained on, M targets whose loss was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.scaling._runs import columns_of, read

OFF = 0.02  # how far a run's weights may be from a sum of 1: what rounding to three digits leaves


@dataclass(frozen=True)
class MixingRuns:
    """Weights, losses, and the training steps of each run where these differ."""

    domains: tuple[str, ...]
    targets: tuple[str, ...]
    weights_ND: np.ndarray
    losses_NM: np.ndarray
    steps_N: np.ndarray | None = None

    def rows(self, places: np.ndarray) -> MixingRuns:
        """Some of the runs."""
        weights_ND, losses_NM = self.weights_ND[places], self.losses_NM[places]
        steps_N = None if self.steps_N is None else self.steps_N[places]
        return replace(self, weights_ND=weights_ND, losses_NM=losses_NM, steps_N=steps_N)


def read_runs(weights: Any, losses: Any = None, *, weight_prefix: str = "weight.", loss_prefix: str = "loss.",
              steps: str | None = None) -> MixingRuns:
    """Runs from one table, or from two with the same rows: columns that begin with a prefix, named by the rest.

    steps: the column (beside the weights) of training steps. Weights that are negative or do not sum to 1 (within
    0.02), losses that are not above 0, values that are not finite, a domain that no run trains on, and tables without
    such columns raise `MixwellError`.
    """
    losses = weights if losses is None else losses
    weight_columns = _named(weights, weight_prefix)
    loss_columns = _named(losses, loss_prefix)
    weights_ND = _matrix(weights, list(weight_columns), positive=False)
    losses_NM = _matrix(losses, list(loss_columns), positive=True)
    if len(weights_ND) != len(losses_NM):
        raise MixwellError(f"{len(weights_ND)} runs have weights and {len(losses_NM)} losses; expected the same runs.")
    steps_N = read(weights, [steps])[steps] if steps else None
    runs = MixingRuns(tuple(weight_columns.values()), tuple(loss_columns.values()), weights_ND, losses_NM, steps_N)
    check(runs)
    return runs


def _named(table: Any, prefix: str) -> dict[str, str]:
    """Columns with the prefix, and their names without it."""
    every = columns_of(table)
    found = {column: column.removeprefix(prefix) for column in every if column.startswith(prefix)}
    if not found:
        raise MixwellError(f"no column begins with {prefix!r}; the table has {', '.join(every[:12])}. Name the prefix "
                           "of yours.")
    return found


def _matrix(table: Any, columns: Sequence[str], positive: bool) -> np.ndarray:
    found = read(table, columns, positive=positive)
    return np.stack(list(found.values()), 1)


def check(runs: MixingRuns) -> None:
    """Raise `MixwellError` where weights are none, or a domain cannot be told."""
    low_N = runs.weights_ND.min(1)
    if (low_N < 0).any():
        place = int(low_N.argmin())
        raise MixwellError(f"run {place + 1} has the weight {low_N[place]:g}; expected weights of at least 0.")
    total_N = runs.weights_ND.sum(1)
    off_N = np.abs(total_N - 1)
    if (off_N > OFF).any():
        place = int(off_N.argmax())
        raise MixwellError(f"the weights of run {place + 1} sum to {total_N[place]:.3g}; expected 1 (within {OFF}).")
    for place, name in enumerate(runs.domains):
        if not runs.weights_ND[:, place].any():
            raise MixwellError(f"no run trains on {name!r}: what it does cannot be told. Add runs, or leave it out.")
