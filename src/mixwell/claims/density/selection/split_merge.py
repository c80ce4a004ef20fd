"""Split and merge: swaps leave poor optima that restarts of EM do not, at the same number of steps.

Paper: SMEM Algorithm for Mixture Models.
Tried: 800 rows of ten Gaussians with covariances and weights of their own, centres even in a square of side 20; ten
components fitted with swaps, nats a row on the rows themselves, mean of four data sets, against the best of as many
k-means starts of EM as the same number of EM steps pays for. Beside it: EM from the first start alone, which the swaps
also begin from. Against it: a likelihood that is no higher.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixwell.claims._series import means
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._data import around
from mixwell.density.mixtures.gaussian import GaussianMixture
from mixwell.density.selection.split_merge import SplitMergeMixture

ROWS, GROUPS, SETS = 800, 10, 4

CLAIM = Claim("Swaps of a merge and a split reach a higher likelihood than restarts at equal steps.", "nats a row",
              lower_is_better=False)


class Counted(SplitMergeMixture):
    """Counts the EM steps of its trials in `steps`, and one more step for each trial's criterion."""

    steps = 0

    def _start(self, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> GaussianMixture:
        trial, outer = super()._start(weights, means, covariances), self
        fit = trial.fit

        def counted(*arguments: Any, **options: Any) -> GaussianMixture:
            fit(*arguments, **options)
            outer.steps += trial.n_iter_ + 1
            return trial

        trial.fit = counted  # type: ignore[method-assign]
        return trial


def draw(rng: np.random.Generator) -> np.ndarray:
    """Rows (ROWS, 2)."""
    roots = 0.7 * rng.normal(size=(GROUPS, 2, 2)) + 0.3 * np.eye(2)
    shares = rng.dirichlet(np.full(GROUPS, 3.0))
    label = rng.choice(GROUPS, ROWS, p=shares)
    noise = rng.normal(size=(ROWS, 2))
    means = rng.uniform(-10, 10, (GROUPS, 2))
    return around(means, roots, label, noise)


def restarted(x: np.ndarray, first: GaussianMixture, steps: int, seed: int) -> tuple[float, int]:
    """The best likelihood of starts that cost so many more steps than the first, and how many those are."""
    best, spent, runs = first.score(x), 0, 1
    while spent < steps:
        again = GaussianMixture(GROUPS, random_state=1000 * (seed + 1) + runs).fit(x)
        best = max(best, again.score(x))
        spent += again.n_iter_
        runs += 1
    return best, runs


def one_set(rng: np.random.Generator, seed: int) -> dict[str, float]:
    """Likelihoods of swaps, of restarts and of the first start, and the number of starts."""
    x = draw(rng)
    first = GaussianMixture(GROUPS, random_state=seed).fit(x)
    model = Counted(GROUPS, moves="swap", random_state=seed).fit(x)
    best, runs = restarted(x, first, model.steps, seed)
    return {"method": model.score(x), "baseline": best, "first start": first.score(x), "starts": runs}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Means of the data sets."""
    rng = np.random.default_rng(seed)
    return means([one_set(rng, seed) for _ in range(SETS)])
