"""Overdispersed counts of two groups are described better by negative binomial components than by Poisson ones.

Paper: Lawless (1987), Negative Binomial and Mixed Poisson Regression.
Tried: two groups, three columns of negative binomial counts of means 2 to 15 and sizes 2; 400 rows to fit and as many
held out; the number of components by BIC, one to six, for both sides; held-out log density a row against that of the
better rival. Against it: a density that is no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._families import ROWS, Build, against
from mixwell.density.mixtures.negative_binomial import NegativeBinomialMixture
from mixwell.density.mixtures.poisson import PoissonMixture

MEANS = np.array([[2.0, 5.0, 9.0], [8.0, 15.0, 3.0]])  # of the groups, by column
RIVALS: dict[str, Build] = {"Poisson": PoissonMixture}

CLAIM = Claim("Overdispersed counts of two groups are described better by negative binomial components "
              "than by Poisson ones.",
              "held-out log density, nats a row", lower_is_better=False)


def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Rows of two groups."""
    group = rng.integers(0, 2, rows)
    means = MEANS[group]
    factor = rng.gamma(2.0, 0.5, means.shape)
    counts = rng.poisson(means * factor)
    return counts.astype(float)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Held-out densities, and how many components were chosen."""
    rng = np.random.default_rng(seed)
    x = draw(rng, ROWS)
    held = draw(rng, ROWS)
    return against(NegativeBinomialMixture, RIVALS, x, held, seed)
