"""Mixture of factor analysers: where rows are few for the columns, fewer parameters describe fresh rows better.

Paper: The EM Algorithm for Mixtures of Factor Analyzers.
Tried: 240 rows of three groups in 20 dimensions, each with two factors and noise variances of its own; nats a row on
5,000 fresh rows, mean of two data sets, five starts each; the number of factors (1 to 4) by BIC, against the Gaussian
mixture of the covariance type (full, tied, diagonal, spherical) that is best on the fresh rows themselves, beside it
all. Against it: a loss that is no smaller.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims._series import means
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._data import around, starts
from mixwell.density.mixtures.factor_analysers import MixtureOfFactorAnalysers
from mixwell.density.mixtures.gaussian import GaussianMixture

ROWS, FRESH, GROUPS, COLUMNS, FACTORS, SETS = 240, 5000, 3, 20, 2, 2
KINDS = ("full", "tied", "diag", "spherical")

CLAIM = Claim("Factor analysers describe fresh rows better where rows are few for the columns.",
              "held-out nats a row")


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit (ROWS, COLUMNS) and fresh ones (FRESH, COLUMNS)."""
    shape = (GROUPS, COLUMNS)
    means = rng.normal(size=shape)
    loadings = rng.normal(size=(GROUPS, COLUMNS, FACTORS))
    deviations = rng.uniform(0.3, 0.9, shape)
    count = ROWS + FRESH
    label = rng.integers(GROUPS, size=count)
    scores = rng.normal(size=(count, FACTORS))
    noise = rng.normal(size=(count, COLUMNS))
    explained = around(means, loadings, label, scores)
    own = deviations[label] * noise
    x = explained + own
    return x[:ROWS], x[ROWS:]


def held_out(rng: np.random.Generator, seed: int) -> dict[str, float]:
    """Losses on fresh rows of one data set, and the factors that BIC chooses."""
    x, fresh = draw(rng)
    options = starts(seed)
    models = [MixtureOfFactorAnalysers(GROUPS, n_factors=q, **options) for q in range(1, 5)]
    fits = [model.fit(x) for model in models]
    chosen = min(fits, key=lambda model: model.bic(x))
    found = {"factors": chosen.n_factors, "method": -chosen.score(fresh)}
    for kind in KINDS:
        model = GaussianMixture(GROUPS, covariance_type=kind, **options)
        height = model.fit(x).score(fresh)
        found[kind] = -height
    return found


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Losses of both and of every covariance type, and the factors that were chosen, mean of the data sets."""
    rng = np.random.default_rng(seed)
    sets = [held_out(rng, seed) for _ in range(SETS)]
    found = means(sets)
    gaussians = [found[kind] for kind in KINDS]
    best = min(gaussians)
    return {**found, "baseline": best}
