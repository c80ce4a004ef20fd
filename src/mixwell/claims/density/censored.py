"""Censored mixtures: moments that know of the censoring find means that a fit to what was seen does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find

FEW, MANY, MEANS = 2000, 500_000, np.array([-0.5, 2.0])


def claim(bench: Any) -> Evidence:
    """Largest error of the means, seen above zero alone, against the same moments that take S for the whole line."""
    estimator = find("density.robust.censored").load()
    aware, naive, few, by_em = [], [], [], []
    for seed in bench.seeds:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=MANY) + np.where(rng.random(MANY) < 0.4, *MEANS)

        def error(rows: int, x: Any = x, **options: Any) -> float:
            seen = x[:rows][x[:rows] > 0]
            lost = 0 if "intervals" not in options else rows - len(seen)
            return float(np.abs(estimator(**options).fit(seen, lost).means_ - MEANS).max())

        half = {"intervals": ((0.0, math.inf),)}
        aware.append(error(MANY, estimator="moments", n_terms=8, **half))
        naive.append(error(MANY, estimator="moments", n_terms=8))
        few.append(error(FEW, estimator="moments", n_terms=6, **half))
        by_em.append(error(FEW, max_iter=500, **half))
    evidence = weigh("Weights and means of a censored Gaussian mixture are found to any accuracy from enough rows",
                     "largest error of the two means", aware, naive,
                     note=f"{MANY} rows; at {FEW}: moments {[round(v, 2) for v in few]}, EM "
                     f"{[round(v, 2) for v in by_em]}")
    evidence.values.update({"moments, few rows": few, "em, few rows": by_em})
    return evidence
