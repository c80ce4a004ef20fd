"""Localised mixture of experts: the slope heuristic finds the number of experts more often than the likelihood does.

Paper: A non-asymptotic approach for model selection via penalization in high-dimensional mixture of experts models.
Tried: 400 rows of three linear experts with inputs around -4, 0 and 4, one to eight experts fitted; share of data sets
(four a seed) on which three are chosen, by the slope heuristic against the likelihood alone. Beside it: BIC. Against
it: a share that is no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims._judging import beside
from mixwell.claims._series import by_name, by_seed
from mixwell.claims.bench import Bench
from mixwell.claims.density._data import quietly
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find

REPEATS, ROWS, TRUE = 4, 400, 3
CENTRES, SLOPES, LEVELS = np.array([[-4.0, 0.0, 4.0], [1.0, -2.0, 3.0], [6.0, 0.0, -8.0]])
CRITERIA = ("slope", "likelihood", "bic")


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows (ROWS, 1) and outcomes (ROWS,) of three experts."""
    part = rng.integers(0, TRUE, ROWS)
    x = CENTRES[part] + rng.normal(size=ROWS)
    y = SLOPES[part] * x + LEVELS[part] + rng.normal(size=ROWS)
    return x[:, None], y


def measure(seed: int) -> dict[str, float]:
    """Share of data sets on which each criterion chooses three experts."""
    rng = np.random.default_rng(seed)
    estimator = find("density.regression.localized").load()
    hits = dict.fromkeys(CRITERIA, 0)
    for _ in range(REPEATS):
        x, y = draw(rng)
        for criterion in CRITERIA:
            model = estimator(n_experts=tuple(range(1, 9)), tol=1e-4, criterion=criterion, random_state=seed)
            with quietly():
                model.fit(x, y)
            hits[criterion] += int(model.n_experts_ == TRUE)
    return {criterion: count / REPEATS for criterion, count in hits.items()}


def claim(bench: Bench) -> Evidence:
    """Share of data sets on which three experts are chosen out of one to eight."""
    found = by_name(by_seed(bench, measure))
    bic = found["bic"]
    evidence = weigh("Penalising by the slope heuristic chooses the true number of Gaussian-gated experts",
                     "share of data sets with the true number", found["slope"], found["likelihood"],
                     lower_is_better=False, note=f"BIC: {bic}; {ROWS} rows, {REPEATS} data sets a seed")
    return beside(evidence, bic=bic)
