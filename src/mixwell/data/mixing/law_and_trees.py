"""A law and boosted trees together: the law carries few runs and new weights, the trees what it cannot express.

**Equation:** log L_i(r) = u log L_i^law(r) + (1 - u) log L_i^trees(r), u = 1/2 or by cross-validation.
**Shapes:** weights r [N, D] of runs, losses [N, M]; every target is fitted by itself.
**Reference:** the parts are `data.mixing.exponential_law` and `data.mixing.regression`; their mean is ours.
**Differs:** see there. u is the least squares of log losses out of fold, half way to 1/2: what does best among runs of
    one kind does a little worse at another scale. `u = "equal"` takes 1/2.
**Fails when:** both parts fail: weights far from all that were tried.
**Cost:** six times the sum of its parts; once that with `u = "equal"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core import registry
from mixwell.core.method import method
from mixwell.data.predictor import Model, Predictor
from mixwell.data.runs import MixingRuns

LAW, TREES = "data.mixing.exponential_law", "data.mixing.regression"
CHOICES = ("equal", "cross_validated")
SPREAD = 10.0  # of the law's slopes: a fold of ten runs would else tell some that are off by orders
FOLD_SEED = 0  # both parts leave out the same runs


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the parts are weighed; `ValueError` for an unknown word."""

    u: str = "cross_validated"  # share of the law: so, or equal

    def __post_init__(self) -> None:
        if self.u not in CHOICES:
            raise ValueError(f"u is {self.u!r}; expected one of {', '.join(CHOICES)}")


@method(title="Law and trees", year=2026)
class LawAndTrees(Predictor):
    """The geometric mean of both predictions."""

    least_runs = 10

    def default(self) -> Config:
        """Cross-validated."""
        return Config()

    def fit_one(self, runs: MixingRuns, target: int, generator: np.random.Generator) -> Model:
        """Both parts of one target."""
        parts = _parts()
        if self.config.u == "cross_validated":
            share = _share(parts, runs, target, generator)
        else:
            share = 0.5
        law, trees = (part.fit_one(runs, target, generator) for part in parts)

        def predict(weights_ND: np.ndarray, steps_N: np.ndarray | None = None) -> np.ndarray:
            log_law = np.log(law(weights_ND, None))
            log_trees = np.log(trees(weights_ND, None))
            between = share * log_law + (1 - share) * log_trees
            return np.exp(between)

        return predict


def _parts() -> list[Predictor]:
    """The law, its slopes held, and trees of larger steps than the paper's, which rank alike in a tenth of the time."""
    law, trees = (registry.find(name) for name in (LAW, TREES))
    held = law.module().Config(spread=SPREAD)
    steps = trees.module().Config(rounds=100, learning_rate=0.1)
    return [law.load()(held), trees.load()(steps)]


def _share(parts: list[Predictor], runs: MixingRuns, target: int, generator: np.random.Generator) -> float:
    """The law's share of least squared error out of fold, half way to 1/2."""
    observed_N = np.log(runs.losses_NM[:, target])
    own = runs.of([runs.targets[target]])
    errors = [part.fit(own, generator).out_of_fold(np.random.default_rng(FOLD_SEED)) for part in parts]
    law_N, trees_N = (observed_N - error_NM[:, 0] for error_NM in errors)
    gap_N = law_N - trees_N
    wanted_N = observed_N - trees_N
    square = max(gap_N @ gap_N, 1e-300)
    best = gap_N @ wanted_N / square
    return 0.25 + 0.5 * float(np.clip(best, 0.0, 1.0))


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Runs whose losses fall with a domain's own weight, in a curve."""
    weights_ND = generator.dirichlet(np.ones(3), 60)
    own_ND = weights_ND[:, :2]
    losses_NM = 1.0 + np.exp(-2 * own_ND)
    runs = MixingRuns(("a", "b", "c"), ("a", "b"), weights_ND, losses_NM)
    return {"runs": runs}
