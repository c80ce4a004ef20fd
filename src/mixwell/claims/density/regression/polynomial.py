"""Convergence rates: the best number of experts grows with the sample.

Paper: Convergence Rates for Mixture-of-Experts.
Tried: a sine of one column with noise 0.2; of 1, 2, 3, 4, 6 and 8 linear experts the number with the least loss on
4,000 fresh rows, from 3,000 rows against from 100 (mean of three data sets). Against it: a number that is no larger.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixwell.claims._series import mean
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._data import quietly
from mixwell.core.registry import find

SMALL, LARGE, EXPERTS = 100, 3000, (1, 2, 3, 4, 6, 8)

CLAIM = Claim("The number of experts that minimises KL loss grows with the sample.", "number of linear experts",
              lower_is_better=False)


def target(x: Any) -> Any:
    """A smooth curve."""
    return np.sin(4 * x)


def seen(x: Any, rng: np.random.Generator) -> Any:
    """Noisy outcomes of rows (N, 1)."""
    noise = 0.2 * rng.normal(size=len(x))
    return target(x[:, 0]) + noise


def best_number(rows: int, rng: np.random.Generator, seed: int) -> int:
    """The number of linear experts with the least held-out loss."""
    x, fresh = rng.uniform(-1, 1, (rows, 1)), rng.uniform(-1, 1, (4000, 1))
    y, truth = seen(x, rng), seen(fresh, rng)
    estimator = find("density.regression.polynomial").load()
    options = {"degree": 1, "tol": 1e-5, "reg_covar": 1e-2, "max_iter": 150}
    losses = []
    for number in EXPERTS:
        model = estimator(n_experts=number, random_state=seed, **options).fit(x, y)
        losses.append(-model.log_likelihood(fresh, truth).mean())
    least = int(np.argmin(losses))
    return EXPERTS[least]


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Best numbers at many rows, and at few."""
    rng = np.random.default_rng(seed)
    with quietly():
        few = [best_number(SMALL, rng, seed) for _ in range(3)]
        many = best_number(LARGE, rng, seed)
    average = mean(few)
    return {"method": float(many), "baseline": average}
