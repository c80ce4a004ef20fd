"""The contract of mixture predictors: a table of runs in, predicted losses with intervals out.

Legend: N runs, D domains, M targets, F folds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.data.runs import MixingRuns, check

Model = Callable[[np.ndarray, "np.ndarray | None"], np.ndarray]  # weights [N, D], steps [N] or None -> losses [N]
FOLDS = 5


class Predictor(ABC):
    """How one target's loss is predicted from weights; a subclass is final."""

    least_runs = 4  # fewer are refused

    def __init__(self, config: Any = None) -> None:
        self.config = config or self.default()

    @abstractmethod
    def default(self) -> Any:
        """The config where none is given."""

    @abstractmethod
    def fit_one(self, runs: MixingRuns, target: int, generator: np.random.Generator) -> Model:
        """What predicts the loss of one target."""

    def fit(self, runs: MixingRuns, generator: np.random.Generator | None = None) -> Mixture:
        """Fit every target; bad or too few runs raise `MixwellError`."""
        check(runs)
        count = len(runs.weights_ND)
        if count < self.least_runs:
            raise MixwellError(f"{count} runs came; expected at least {self.least_runs}.")
        generator = generator or np.random.default_rng(0)
        models = []
        for target in range(len(runs.targets)):
            model = self.fit_one(runs, target, generator)
            models.append(model)
        return Mixture(self, runs, tuple(models))


@dataclass(frozen=True)
class Mixture:
    """A predictor fitted to runs."""

    predictor: Predictor
    runs: MixingRuns
    models: tuple[Model, ...]

    def predict(self, weights_ND: np.ndarray, steps_N: np.ndarray | None = None) -> np.ndarray:
        """Losses of every target: [N, M]."""
        given = np.asarray(weights_ND, dtype=np.float64)
        weights_ND = np.atleast_2d(given)
        came, domains = weights_ND.shape[1], len(self.runs.domains)
        if came != domains:
            raise MixwellError(f"weights of {came} domains came; the runs have {domains}.")
        columns = [model(weights_ND, steps_N) for model in self.models]
        return np.stack(columns, 1)

    def out_of_fold(self, generator: np.random.Generator | None = None, folds: int = FOLDS) -> np.ndarray:
        """log observed less log predicted by fits that did not see the run: [N, M]."""
        generator = generator or np.random.default_rng(0)
        N = len(self.runs.weights_ND)
        fold_N = generator.permutation(N) % folds
        error_NM = np.empty_like(self.runs.losses_NM)
        for fold in range(folds):
            held = np.flatnonzero(fold_N == fold)
            seen = np.flatnonzero(fold_N != fold)
            fitted = self.predictor.fit(self.runs.rows(seen), generator)
            part = self.runs.rows(held)
            predicted = fitted.predict(part.weights_ND, part.steps_N)
            observed = np.log(part.losses_NM)
            error_NM[held] = observed - np.log(predicted)
        return error_NM

    def interval(self, weights_ND: np.ndarray, errors_NM: np.ndarray, level: float = 0.95,
                 steps_N: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends for new runs at these weights, [N, M] each.

        errors_NM: of `out_of_fold`. The rank of the quantile is that of split conformal prediction, so that new runs of
        the same kind fall inside at least this often, up to what refitting on fewer runs changes.
        """
        count = len(errors_NM)
        rank = math.ceil(level * (count + 1))
        last = min(count, rank) - 1
        sizes_NM = np.abs(errors_NM)
        reach_M = np.sort(sizes_NM, 0)[last]
        factor_M = np.exp(reach_M)
        middle_NM = self.predict(weights_ND, steps_N)
        return middle_NM / factor_M, middle_NM * factor_M


def rank_correlation(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Spearman's rho; ranks of ties are their mean."""
    from scipy.stats import spearmanr

    found = spearmanr(a_N, b_N)
    return float(found.statistic)
