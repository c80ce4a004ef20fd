"""How sure a chosen mixture is: intervals of its weights, coverage of predicted losses, and other predictors beside it.

Legend: N runs, D domains, M targets, G groups of runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from statistics import median

import numpy as np

from mixwell.core import registry
from mixwell.core.errors import MixwellError
from mixwell.data.optimum import Search, best_weights
from mixwell.data.predictor import Mixture, rank_correlation
from mixwell.data.runs import MixingRuns

FAMILY = "data.mixing"
GROUPS = 10
LEVEL = 0.95
QUICK = Search(samples=4000, kept=64)  # of every group: coarser than the choice itself, whose errors are the runs'
HELD = 0.25  # share of the runs that intervals are tried on


def weight_intervals(fitted: Mixture, importance: Mapping[str, float] | None, caps_D: np.ndarray,
                     generator: np.random.Generator, groups: int = GROUPS,
                     level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Between which weights the best mixture lies, [D] each, by leaving out a group of runs in turn.

    The delete-a-group jackknife with Student's quantile around the choice of all runs, cut to 0 and the caps: a
    bootstrap would put copies of a run on both sides of a predictor's own folds. Fewer runs than groups leave out one
    at a time; what cannot be fitted without a group raises `MixwellError`.
    """
    runs = fitted.runs
    N = len(runs.weights_ND)
    count = min(groups, N)
    group_N = generator.permutation(N) % count
    chosen = []
    for group in range(count):
        kept = np.flatnonzero(group_N != group)
        others = fitted.predictor.fit(runs.rows(kept), _same())
        chosen.append(_quickly(others, importance, caps_D))
    centre_D = _quickly(fitted, importance, caps_D)
    low_D, high_D = jackknifed(np.stack(chosen), centre_D, level)
    most_D = np.minimum(caps_D, 1.0)
    return np.clip(low_D, 0.0, most_D), np.clip(high_D, 0.0, most_D)


def _quickly(fitted: Mixture, importance: Mapping[str, float] | None, caps_D: np.ndarray) -> np.ndarray:
    found = best_weights(fitted, importance, caps_D=caps_D, search=QUICK, generator=_same())
    return found.weights_D


def _same() -> np.random.Generator:
    """The same draws for every group, so that only the runs differ."""
    return np.random.default_rng(42)


def jackknifed(values_GD: np.ndarray, centre_D: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """centre +- t sqrt((G - 1) / G sum_g (value_g - mean)^2), [D] each: Student's t of G - 1 degrees of freedom."""
    from scipy.stats import t

    G = len(values_GD)
    spread_D = values_GD.var(0)
    variance_D = (G - 1) * spread_D
    upper = 0.5 + level / 2
    reach_D = t.ppf(upper, G - 1) * np.sqrt(variance_D)
    return centre_D - reach_D, centre_D + reach_D


@dataclass(frozen=True)
class Coverage:
    """How many losses of runs that a fit never saw lay inside its intervals."""

    inside: int
    tried: int
    level: float  # promised

    @property
    def share(self) -> float:
        """Of those tried."""
        return self.inside / self.tried


def coverage(fitted: Mixture, generator: np.random.Generator, rounds: int = 2, level: float = LEVEL) -> Coverage:
    """Intervals made from three quarters of the runs, tried on the rest; in each round others are left out.

    Fewer runs than the predictor and its folds need raise `MixwellError`.
    """
    runs = fitted.runs
    N = len(runs.weights_ND)
    held = max(1, round(HELD * N))
    inside, tried = 0, 0
    for _ in range(rounds):
        order_N = generator.permutation(N)
        seen = runs.rows(order_N[held:])
        unseen = runs.rows(order_N[:held])
        part = fitted.predictor.fit(seen, _same())
        errors_SM = part.out_of_fold(_same())
        low_HM, high_HM = part.interval(unseen.weights_ND, errors_SM, level, unseen.steps_N)
        within_HM = (low_HM <= unseen.losses_NM) & (unseen.losses_NM <= high_HM)
        inside += int(within_HM.sum())
        tried += within_HM.size
    return Coverage(inside, tried, level)


@dataclass(frozen=True)
class Score:
    """A predictor on runs that it did not see; `refused` says why there are no numbers."""

    rank: float | None = None  # rank correlation in the median target
    error: float | None = None  # root mean square of log observed less log predicted: 0.01 is 1 % of the loss
    refused: str = ""


def cross_validated(runs: MixingRuns, names: Iterable[str] | None = None, seed: int = 42,
                    but: str | None = None, pool: Executor | None = None) -> dict[str, Score]:
    """Every predictor of data.mixing (or those named), by the same folds. but: one whose score is known already.

    pool: where predictors are fitted; None: here, one after the other.
    """
    if names is None:
        names = [entry.name for entry in registry.family(FAMILY)]
    left_out = None if but is None else registry.find(but, FAMILY)
    tried = [name for name in names if registry.find(name, FAMILY) != left_out]
    if pool is None:
        return {name: scored(name, runs, seed) for name in tried}
    waiting = {name: pool.submit(scored, name, runs, seed) for name in tried}
    return {name: one.result() for name, one in waiting.items()}


def scored(name: str, runs: MixingRuns, seed: int) -> Score:
    """A predictor of data.mixing on runs that it did not see."""
    predictor = registry.find(name, FAMILY).load()()
    try:
        fitted = predictor.fit(runs, np.random.default_rng(seed))
        errors_NM = fitted.out_of_fold(np.random.default_rng(seed))
    except MixwellError as error:
        return Score(refused=str(error))
    return score(runs, errors_NM)


def score(runs: MixingRuns, errors_NM: np.ndarray) -> Score:
    """What errors out of fold amount to."""
    ranks = rank_correlations(runs, errors_NM)
    middle = median(ranks.values())
    square = np.mean(errors_NM**2)
    return Score(middle, float(np.sqrt(square)))


def rank_correlations(runs: MixingRuns, errors_NM: np.ndarray) -> dict[str, float]:
    """Rank correlation of losses with what fits that did not see them predict, by target."""
    log_NM = np.log(runs.losses_NM)
    told_NM = log_NM - errors_NM
    columns = zip(runs.targets, told_NM.T, log_NM.T)
    return {name: rank_correlation(told_N, log_N) for name, told_N, log_N in columns}
