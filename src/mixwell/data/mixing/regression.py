"""RegMix: the loss of a mixture by regression, linear or by boosted trees.

**Equation:** L_i(r) = f_i(r), f a linear function or a sum of regression trees fitted to squared errors.
**Shapes:** weights r [N, D] of runs, losses [N, M]; every target is fitted by itself.
**Reference:** Liu et al. 2025 (2407.01492).
**Differs:** no early stopping by default: the released notebook stops on the runs that it is judged on (give them as
    `validation` to do the same). Leaves hold at least a tenth of the runs, 20 at most and 5 at least, where the
    released code has 20 always and is constant below 40 runs; `min_samples_leaf` brings that back.
**Fails when:** asked beyond the weights that were tried: trees are constant there, lines go on.
**Cost:** O(rounds * N D) a target.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.data.predictor import Model, Predictor
from mixwell.data.runs import MixingRuns

KINDS = ("trees", "linear")
BOOSTERS = ("sklearn", "lightgbm")
PATIENCE = 3  # rounds without gain after which a validation set stops LightGBM


def _check_word(name: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise ValueError(f"{name} is {word!r}; expected one of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What regresses; `ValueError` for a value out of range."""

    kind: str = "trees"  # or linear
    booster: str = "sklearn"  # whose trees: sklearn, or lightgbm where that is installed
    rounds: int = 1000  # trees, at least 1
    learning_rate: float = 0.01  # above 0
    min_samples_leaf: int | None = None  # None: a tenth of the runs, from 5 to 20
    seed: int = 42
    validation: MixingRuns | None = field(default=None, compare=False)  # stops lightgbm early

    def __post_init__(self) -> None:
        _check_word("kind", self.kind, KINDS)
        _check_word("booster", self.booster, BOOSTERS)
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; expected at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected a number above 0")
        if self.validation is not None and self.booster != "lightgbm":
            raise ValueError("validation stops lightgbm alone; set booster to lightgbm")

    def leaf(self, runs: int) -> int:
        """Runs that a leaf holds at least."""
        tenth = max(5, runs // 10)
        return self.min_samples_leaf or min(20, tenth)


@method(title="RegMix", year=2024,
        paper="RegMix: Data Mixture as Regression for Language Model Pre-training")
class Regression(Predictor):
    """Boosted trees, or a line."""

    def default(self) -> Config:
        """scikit-learn's trees."""
        return Config()

    def fit_one(self, runs: MixingRuns, target: int, generator: np.random.Generator) -> Model:
        """One target's regression."""
        losses_N = runs.losses_NM[:, target]
        if self.config.kind == "linear":
            return _line(runs.weights_ND, losses_N)
        if self.config.booster == "lightgbm":
            return _lightgbm(runs, target, self.config)
        return _trees(runs.weights_ND, losses_N, self.config)


def _line(weights_ND: np.ndarray, losses_N: np.ndarray) -> Model:
    """Least squares with an intercept; of the many that fit alike (weights sum to 1) the shortest."""
    ones_N1 = np.ones((len(weights_ND), 1))
    rows = np.hstack([ones_N1, weights_ND])
    found, *_ = np.linalg.lstsq(rows, losses_N, rcond=None)
    level, slopes_D = found[0], found[1:]

    def predict(weights_ND: np.ndarray, steps_N: np.ndarray | None = None) -> np.ndarray:
        return level + weights_ND @ slopes_D

    return predict


def _trees(weights_ND: np.ndarray, losses_N: np.ndarray, config: Config) -> Model:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    found = HistGradientBoostingRegressor(
        max_iter=config.rounds, learning_rate=config.learning_rate, min_samples_leaf=config.leaf(len(losses_N)),
        max_leaf_nodes=31, early_stopping=False, random_state=config.seed)
    with threadpool_limits(1):  # so few rows are split among threads for longer than they take
        found.fit(weights_ND, losses_N)
    return _predicting(found)


def _predicting(fitted: Any) -> Model:
    def predict(weights_ND: np.ndarray, steps_N: np.ndarray | None = None) -> np.ndarray:
        return np.asarray(fitted.predict(weights_ND))

    return predict


def _lightgbm(runs: MixingRuns, target: int, config: Config) -> Model:
    try:
        import lightgbm
    except ImportError:
        raise MixwellError("booster=lightgbm needs the package lightgbm: pip install lightgbm; or take "
                           "booster=sklearn.") from None

    losses_N = runs.losses_NM[:, target]
    found = lightgbm.LGBMRegressor(
        n_estimators=config.rounds, learning_rate=config.learning_rate, random_state=config.seed, n_jobs=1,
        min_child_samples=config.leaf(len(losses_N)), metric=["l1", "l2"], verbosity=-1)
    held = config.validation
    if held is None:
        found.fit(runs.weights_ND, losses_N)
    else:
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        found.fit(runs.weights_ND, losses_N, eval_set=[(held.weights_ND, held.losses_NM[:, target])],
                  eval_metric="l2", callbacks=[stop])
    return _predicting(found)


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Runs whose losses fall with a domain's own weight."""
    weights_ND = generator.dirichlet(np.ones(3), 80)
    losses_NM = 3.0 - weights_ND[:, :2]
    return {"runs": MixingRuns(("a", "b", "c"), ("a", "b"), weights_ND, losses_NM)}
