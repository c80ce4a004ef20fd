"""Localised mixture of experts: the slope heuristic finds the number of experts more often than the likelihood does."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find

REPEATS, ROWS, TRUE = 4, 400, 3


def claim(bench: Any) -> Evidence:
    """Share of data sets on which three experts are chosen out of one to eight."""
    slope: list[float] = []
    likelihood: list[float] = []
    bic: list[float] = []
    for seed in bench.seeds:
        rng, hits = np.random.default_rng(seed), np.zeros(3)
        for _ in range(REPEATS):
            part = rng.integers(0, TRUE, ROWS)
            x = np.array([-4.0, 0.0, 4.0])[part] + rng.normal(size=ROWS)
            y = np.array([1.0, -2.0, 3.0])[part] * x + np.array([6.0, 0.0, -8.0])[part] + rng.normal(size=ROWS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for i, criterion in enumerate(("slope", "likelihood", "bic")):
                    model = find("density.regression.localized").load()(n_experts=tuple(range(1, 9)), tol=1e-4,
                                                                        criterion=criterion, random_state=seed)
                    model.fit(x[:, None], y)
                    hits[i] += model.n_experts_ == TRUE
        for values, hit in zip((slope, likelihood, bic), hits / REPEATS):
            values.append(float(hit))
    evidence = weigh("Penalising by the slope heuristic chooses the true number of Gaussian-gated experts",
                     "share of data sets with the true number", slope, likelihood, lower_is_better=False,
                     note=f"BIC: {bic}; {ROWS} rows, {REPEATS} data sets a seed")
    evidence.values["bic"] = bic
    return evidence
