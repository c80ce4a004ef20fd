"""Convergence rates: the best number of experts grows with the sample."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find

SMALL, LARGE, EXPERTS = 100, 3000, (1, 2, 3, 4, 6, 8)


def target(x: Any) -> Any:
    """A smooth curve."""
    return np.sin(4 * x)


def best_number(rows: int, rng: np.random.Generator, seed: int) -> int:
    """The number of linear experts with the least held-out loss."""
    x, t = rng.uniform(-1, 1, (rows, 1)), rng.uniform(-1, 1, (4000, 1))
    y, v = (target(a[:, 0]) + 0.2 * rng.normal(size=len(a)) for a in (x, t))
    losses = []
    for m in EXPERTS:
        model = find("density.regression.polynomial").load()(n_experts=m, degree=1, random_state=seed, tol=1e-5,
                                                             reg_covar=1e-2, max_iter=150).fit(x, y)
        losses.append(-model.log_likelihood(t, v).mean())
    return EXPERTS[int(np.argmin(losses))]


def claim(bench: Any) -> Evidence:
    """Best m at many rows against best m at few, experts of degree one."""
    few, many = [], []
    for seed in bench.seeds:
        rng = np.random.default_rng(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            few.append(float(np.mean([best_number(SMALL, rng, seed) for _ in range(3)])))
            many.append(float(best_number(LARGE, rng, seed)))
    return weigh("The number of experts that minimises KL loss grows with the sample", "number of linear experts", many,
                 few, lower_is_better=False, note=f"{LARGE} rows against {SMALL} (mean of three), experts {EXPERTS}")
