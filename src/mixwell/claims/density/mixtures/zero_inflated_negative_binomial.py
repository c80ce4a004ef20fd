"""Overdispersed counts with zeros of two origins are described better with both than by zero-inflated.

Paper: Greene (1994), Accounting for Excess Zeros.
Tried: two groups, three columns of negative binomial counts of means 5 to 30 and sizes 4, 30 % of them set to zero at
random; 400 rows to fit and as many held out; the number of components by BIC, one to six, for both sides; held-out
log density a row against that of the better rival. Against it: a density that is no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._families import ROWS, Build, against
from mixwell.density.mixtures.negative_binomial import NegativeBinomialMixture
from mixwell.density.mixtures.zero_inflated_negative_binomial import ZeroInflatedNegativeBinomialMixture
from mixwell.density.mixtures.zero_inflated_poisson import ZeroInflatedPoissonMixture

MEANS = np.array([[5.0, 10.0, 18.0], [16.0, 30.0, 8.0]])  # of the groups, by column
RIVALS: dict[str, Build] = {"zero-inflated Poisson": ZeroInflatedPoissonMixture,
                            "negative binomial": NegativeBinomialMixture}

CLAIM = Claim("Overdispersed counts with zeros of two origins are described better with both than by "
              "zero-inflated Poisson or by negative binomial components.",
              "held-out log density, nats a row", lower_is_better=False)


def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Rows of two groups."""
    group = rng.integers(0, 2, rows)
    means = MEANS[group]
    factor = rng.gamma(4.0, 0.25, means.shape)
    counted = rng.random(means.shape) > 0.3
    counts = rng.poisson(means * factor) * counted
    return counts.astype(float)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Held-out densities, and how many components were chosen."""
    rng = np.random.default_rng(seed)
    x = draw(rng, ROWS)
    held = draw(rng, ROWS)
    return against(ZeroInflatedNegativeBinomialMixture, RIVALS, x, held, seed)
