"""Counts with zeros of two origins are described better by zero-inflated Poisson components than by Poisson.

Paper: Lambert (1992), Zero-Inflated Poisson Regression.
Tried: two groups, three columns of Poisson counts of means 3 to 15, 30 % of them set to zero at random; 400 rows to
fit and as many held out; the number of components by BIC, one to six, for both sides; held-out log density a row
against that of the better rival. Against it: a density that is no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._families import ROWS, Build, against
from mixwell.density.mixtures.poisson import PoissonMixture
from mixwell.density.mixtures.zero_inflated_poisson import ZeroInflatedPoissonMixture

MEANS = np.array([[3.0, 5.0, 9.0], [8.0, 15.0, 4.0]])  # of the groups, by column
RIVALS: dict[str, Build] = {"Poisson": PoissonMixture}

CLAIM = Claim("Counts with zeros of two origins are described better by zero-inflated Poisson "
              "components than by Poisson ones.",
              "held-out log density, nats a row", lower_is_better=False)


def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Rows of two groups."""
    group = rng.integers(0, 2, rows)
    means = MEANS[group]
    counted = rng.random(means.shape) > 0.3
    counts = rng.poisson(means) * counted
    return counts.astype(float)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Held-out densities, and how many components were chosen."""
    rng = np.random.default_rng(seed)
    x = draw(rng, ROWS)
    held = draw(rng, ROWS)
    return against(ZeroInflatedPoissonMixture, RIVALS, x, held, seed)
