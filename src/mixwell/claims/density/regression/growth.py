"""Growth mixture of experts: estimates without bias, and intervals that cover.

Paper: Extending Mixture of Experts Model to Investigate Heterogeneity of Trajectories: When, Where and How to Add Which
Covariates.
Tried: 300 people at ten waves in two classes, whose curves bend at waves 4 and 5.5, under a gate of slope 2, four data
sets a seed; errors of both knots and of the gate's slope in standard errors, and whether nominal 95 % intervals cover.
Against it: less than 90 % covered, or a mean error of half a standard error or more to either side.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.claims.density._data import logistic
from mixwell.core.registry import find

REPEATS, PEOPLE = 4, 300
TIMES = np.arange(10.0)
FACTORS = np.array([[[1.0, 2.0, 0.5], [0.8, 0.0, 0.1]], [[4.0, 1.0, -0.5], [0.8, 0.0, 0.1]]])  # class, covariate
KNOTS, GATE = np.array([4.0, 5.5]), 2.0
NOISE = np.array([0.5, 0.2, 0.2])  # of level and both slopes
COVERED, BIASED = 0.9, 0.5  # share of the intervals, standard errors

CLAIM = Claim("Estimates of the growth mixture of experts have no bias; 95 % intervals cover as they say.",
              "share of 95 % intervals that cover", quantity="coverage", baseline=COVERED, lower_is_better=False,
              provided=(Comparison(quantity="bias", baseline=BIASED),
                        Comparison(quantity="bias", baseline=-BIASED, lower_is_better=False)))


def simulate(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """Outcomes, gate covariate and growth covariate of two classes."""
    z = rng.normal(size=(PEOPLE, 1))
    x = rng.normal(size=(PEOPLE, 1))
    second = rng.random(PEOPLE) < logistic(GATE * z[:, 0])
    label = second.astype(int)
    mean = FACTORS[label, 0] + x * FACTORS[label, 1]
    factors = mean + rng.normal(size=(PEOPLE, 3)) * NOISE
    level, early, late = factors.T[..., None]
    knot = KNOTS[label][:, None]
    curve = level + early * np.minimum(TIMES, knot) + late * np.maximum(TIMES - knot, 0)
    return curve + 0.5 * rng.normal(size=curve.shape), z, x


def standardised(rng: np.random.Generator, seed: int) -> list[float]:
    """Errors of the knots and the gate's slope on one data set, in standard errors."""
    y, z, x = simulate(rng)
    model = find("density.regression.growth").load()(random_state=seed, tol=1e-6)
    se = model.fit(y, TIMES, z, x).standard_errors(y, TIMES, z, x)
    order = np.argsort(model.knots_)
    first, second = model.gate_coef_[order, 1]
    errors = [*(model.knots_[order] - KNOTS), second - first - GATE]
    spreads = [*se["knot"][order], se["gate_coef"][0, 1]]
    return [float(error / spread) for error, spread in zip(errors, spreads)]


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Coverage of nominal 95 % intervals over data sets, and the mean error in standard errors."""
    rng = np.random.default_rng(seed)
    errors: list[float] = []
    for _ in range(REPEATS):
        errors += standardised(rng, seed)
    covered = [abs(error) < 1.96 for error in errors]
    return {"method": {"coverage": statistics.fmean(covered), "bias": statistics.fmean(errors)}}
