"""Mixture of factor analysers: where rows are few for the columns, fewer parameters describe fresh rows better.

Paper: The EM Algorithm for Mixtures of Factor Analyzers.
Tried: 240 rows of three groups in 20 dimensions, each with two factors and noise variances of its own; nats a row on
5,000 fresh rows, mean of two data sets, five starts each; the number of factors (1 to 4) by BIC, against the Gaussian
mixture of the covariance type (full, tied, diagonal, spherical) that is best on the fresh rows themselves. Against it:
a loss that is no smaller.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixwell.claims._judging import beside
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.density.mixtures.factor_analysers import MixtureOfFactorAnalysers
from mixwell.density.mixtures.gaussian import GaussianMixture

ROWS, FRESH, GROUPS, COLUMNS, FACTORS, SETS = 240, 5000, 3, 20, 2, 2


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit (ROWS, COLUMNS) and fresh ones (FRESH, COLUMNS)."""
    means, loadings = rng.normal(size=(GROUPS, COLUMNS)), rng.normal(size=(GROUPS, COLUMNS, FACTORS))
    noise = rng.uniform(0.3, 0.9, (GROUPS, COLUMNS))
    count = ROWS + FRESH
    label = rng.integers(GROUPS, size=count)
    scores = rng.normal(size=(count, FACTORS))
    x = (means[label] + np.einsum("ndq,nq->nd", loadings[label], scores)
         + noise[label] * rng.normal(size=(count, COLUMNS)))
    return x[:ROWS], x[ROWS:]


def claim(bench: Bench) -> Evidence:
    """Held-out loss of both, and the factors that were chosen."""
    found: dict[str, list[float]] = {name: [] for name in ("analysers", "full", "tied", "diag", "spherical")}
    chosen: list[float] = []
    for seed in bench.seeds:
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {"n_init": 5, "max_iter": 500, "random_state": seed}
        losses: dict[str, list[float]] = {name: [] for name in found}
        factors = []
        for _ in range(SETS):
            x, fresh = draw(rng)
            fits = [MixtureOfFactorAnalysers(GROUPS, n_factors=q, **options).fit(x) for q in (1, 2, 3, 4)]
            best = min(fits, key=lambda model: model.bic(x))
            factors.append(best.n_factors)
            losses["analysers"].append(-best.score(fresh))
            for kind in ("full", "tied", "diag", "spherical"):
                model = GaussianMixture(GROUPS, covariance_type=kind, **options).fit(x)
                losses[kind].append(-model.score(fresh))
        for name, values in losses.items():
            found[name].append(float(np.mean(values)))
        chosen.append(float(np.mean(factors)))
    ours = found.pop("analysers")
    evidence = weigh("Factor analysers describe fresh rows better where rows are few for the columns.",
                     "held-out nats a row", ours, [min(group) for group in zip(*found.values())])
    return beside(evidence, factors=chosen, **found)
