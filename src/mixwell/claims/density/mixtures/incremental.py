"""Incremental mixtures: on precision matrices the time of a row grows with the square of the columns, not the cube.

Paper: A Fast Incremental Gaussian Mixture Model.
Tried: one component in 64 to 512 columns that takes row after row, the least time a row of three rounds of four; slope
of log time against log columns, updates of the precision matrix against updates of the covariance, which is inverted.
Against it: a slope that is no smaller.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.registry import find

SIZES, ROWS, ROUNDS = (64, 128, 256, 512), 4, 3

CLAIM = Claim("Updating precision matrices by rank-one steps costs a power of the columns less than inverting "
              "covariances.", "slope of log time against log columns")


def seconds(form: str, columns: int, rng: np.random.Generator) -> float:
    """The least time of a row over rounds."""
    estimator = find("density.mixtures.incremental").load()
    model = estimator(form=form, beta=0.0, spread=np.ones(columns))
    model.fit(rng.normal(size=(2, columns)))
    times = []
    for _ in range(ROUNDS):
        x, began = rng.normal(size=(ROWS, columns)), perf_counter()
        model.partial_fit(x)
        times.append((perf_counter() - began) / ROWS)
    return min(times)


def slope(form: str, rng: np.random.Generator) -> float:
    """Of log time against log columns."""
    times = [seconds(form, columns, rng) for columns in SIZES]
    rate, _ = np.polyfit(np.log(SIZES), np.log(times), 1)
    return float(rate)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Slopes of both forms."""
    rng = np.random.default_rng(seed)
    return {"method": slope("precision", rng), "baseline": slope("covariance", rng)}
