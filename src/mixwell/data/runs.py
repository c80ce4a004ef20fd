"""Tables of runs that differ in their mixture: weights of the domains in, losses by target out.

Legend: N runs, D domains trained on, M targets whose loss was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError, suggest
from mixwell.scaling.runs import columns_of, read

TOGETHER = 5e-3  # of the largest singular value: what rounding to three digits leaves of domains that are tied
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

    def of(self, names: Iterable[str]) -> MixingRuns:
        """The runs with some of the targets; an unknown one raises `MixwellError`."""
        names = tuple(names)
        for name in names:
            if name not in self.targets:
                known = ", ".join(self.targets)
                raise MixwellError(f"unknown target {name!r}.{suggest(name, self.targets)} The runs have {known}.")
        places = [self.targets.index(name) for name in names]
        return replace(self, targets=names, losses_NM=self.losses_NM[:, places])


def read_runs(weights: Any, losses: Any = None, *, weight_prefix: str = "weight.", loss_prefix: str = "loss.",
              steps: str | None = None) -> MixingRuns:
    """Runs from one table, or from two with the same rows: columns that begin with a prefix, named by the rest.

    steps: the column (beside the weights) of training steps. Weights that are negative or do not sum to 1 (within
    0.02), losses that are not above 0, values that are not finite, a domain that no run trains on, domains that vary
    together in all runs, and tables without such columns raise `MixwellError`.
    """
    losses = weights if losses is None else losses
    domains = _named(weights, weight_prefix)
    targets = _named(losses, loss_prefix)
    weights_ND = _matrix(weights, list(domains), positive=False)
    losses_NM = _matrix(losses, list(targets), positive=True)
    have = len(weights_ND)
    measured = len(losses_NM)
    if have != measured:
        raise MixwellError(f"{have} runs have weights and {measured} losses; expected the same runs.")
    steps_N = read(weights, [steps])[steps] if steps else None
    names = tuple(domains.values())
    measures = tuple(targets.values())
    runs = MixingRuns(names, measures, weights_ND, losses_NM, steps_N)
    check(runs)
    if len(weights_ND) > len(names):
        check_apart(runs)
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
    place = int(low_N.argmin())
    if low_N[place] < 0:
        raise MixwellError(f"run {place + 1} has the weight {low_N[place]:g}; expected weights of at least 0.")
    total_N = runs.weights_ND.sum(1)
    off_N = np.abs(total_N - 1)
    place = int(off_N.argmax())
    if off_N[place] > OFF:
        raise MixwellError(f"the weights of run {place + 1} sum to {total_N[place]:.3g}; expected 1 (within {OFF}).")
    most_D = runs.weights_ND.max(0)
    for name, most in zip(runs.domains, most_D):
        if most == 0:
            raise MixwellError(f"no run trains on {name!r}: what it does cannot be told. Add runs, or leave it out.")


def check_apart(runs: MixingRuns) -> None:
    """Raise `MixwellError` where no run tells some domains apart: a share that never changes, or that others settle."""
    total_N1 = runs.weights_ND.sum(1, keepdims=True)
    shares_ND = runs.weights_ND / total_N1
    spread_D = shares_ND.std(0)
    for name, spread in zip(runs.domains, spread_D):
        if spread < 1e-9:
            raise MixwellError(f"the weight of {name!r} is the same in every run; what it does cannot be told. Add "
                               "runs in which it differs, or leave it out.")
    centred_ND = shares_ND - shares_ND.mean(0)
    _, sizes, directions = np.linalg.svd(centred_ND / spread_D, full_matrices=False)
    still = sizes <= TOGETHER * sizes[0]
    if still.sum() > 1:  # one is the sum of all, which is 1
        names = ", ".join(_tied(runs.domains, directions[still], spread_D))
        count = len(shares_ND)
        raise MixwellError(f"the weights of {names} vary together in all {count} runs; what each does cannot be told. "
                           "Add runs in which they vary apart, or make one domain of them.")


def _tied(domains: Sequence[str], still_KD: np.ndarray, spread_D: np.ndarray) -> list[str]:
    """The domains of a tie beside the sum: what directions without spread have besides that of the sum."""
    sum_D = spread_D / np.linalg.norm(spread_D)
    along_K = still_KD @ sum_D
    beside_KD = still_KD - np.outer(along_K, sum_D)
    _, _, found = np.linalg.svd(beside_KD)
    size_D = np.abs(found[0])
    least = 0.3 * size_D.max()
    return [name for name, size in zip(domains, size_D) if size > least]
