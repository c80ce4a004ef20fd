"""Bootstrap: its intervals of a mixture's means hold the truth about as often as they say.

Paper: Efron, Tibshirani (1993), An Introduction to the Bootstrap.
Tried: 16 samples of 150 rows from two normal groups, three to one, three deviations apart; 95 % intervals of both
means from 60 resamples; the distance of their coverage from 0.95, against that of intervals which take every row's
label for certain and a normal distribution with half the data's rows in place of the group's. Against it: a distance
that is no smaller.
"""

from __future__ import annotations

import warnings

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.density.mixtures.gaussian import GaussianMixture
from mixwell.density.selection.bootstrap import MixtureBootstrap

SAMPLES, ROWS, TRUTH = 16, 150, np.array([0.0, 3.0])

CLAIM = Claim("Bootstrap intervals of a mixture's means cover the truth about as often as they say.",
              "distance of the coverage from 0.95", lower_is_better=True)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Distances of the coverages from the level."""
    rng = np.random.default_rng(seed)
    covered = np.array([one_sample(rng) for _ in range(SAMPLES)])
    ours, naive = covered.mean((0, 2))
    return {
        "method": abs(ours - 0.95),
        "baseline": abs(naive - 0.95),
        "coverage": ours,
        "naive coverage": naive,
    }


def one_sample(rng: np.random.Generator) -> np.ndarray:
    """Whether both kinds of intervals hold each mean (2, 2)."""
    shares = np.array([0.75, 0.25])
    label = rng.choice(2, ROWS, p=shares)
    x = rng.normal(TRUTH[label])[:, None]
    start = GaussianMixture(2, means_init=TRUTH[:, None], tol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seed = int(rng.integers(1 << 30))
        found = MixtureBootstrap(start, 60, random_state=seed).fit(x)
    low, high = found.intervals_["means_"][..., 0]
    model = found.estimator_
    variance = model.covariances_[:, 0, 0]
    error = np.sqrt(2 * variance / ROWS)
    distance = np.abs(model.means_[:, 0] - TRUTH)
    below, above = low <= TRUTH, high >= TRUTH
    return np.stack([below & above, distance <= 1.96 * error])
