"""Lasso mixture of experts: where columns are many, the penalty predicts better and finds what matters.

Paper: Non-asymptotic oracle inequalities for the Lasso in high-dimensional mixture of experts.
Tried: 200 rows of two linear experts, five of a hundred columns active, five starts each; nats a row on 2,000 fresh
rows, of five penalties the one that is best on 200 other rows, against the fit without a penalty. Beside it: F1 of the
columns that are kept. Against it: a loss that is no smaller.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixwell.claims._judging import beside
from mixwell.claims._series import said, series
from mixwell.claims.bench import Bench
from mixwell.claims.density._data import logistic, quietly
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find

ROWS, COLUMNS = 200, 100
PENALTIES = (0.06, 0.08, 0.1, 0.12, 0.15)


def simulate(rng: np.random.Generator, rows: int) -> tuple[Any, Any]:
    """Two experts on five of a hundred columns."""
    x = rng.normal(size=(rows, COLUMNS))
    gate, a, b, c, d = x[:, :5].T
    first = rng.random(rows) < logistic(3 * gate)
    one = 2 + 2 * a + b
    other = -2 - 2 * c + d
    mean = np.where(first, one, other)
    return x, mean + rng.normal(size=rows)


def loss(model: Any, rows: tuple[Any, Any]) -> float:
    """Mean negative log-likelihood of rows and their outcomes."""
    return -float(model.log_likelihood(*rows).mean())


def support_f1(model: Any) -> float:
    """F1 of the columns that are kept, of which the first five matter."""
    hits = int(model.support_[:5].sum())
    kept = int(model.support_.sum())
    return 2 * hits / (5 + kept)


def measure(seed: int) -> tuple[float, float, float]:
    """Held-out losses of the best penalty on other rows and of no penalty, and the support's F1."""
    rng = np.random.default_rng(seed)
    known = simulate(rng, ROWS)
    chosen_on = simulate(rng, 200)
    test = simulate(rng, 2000)
    options = {"init": "random", "n_init": 5, "random_state": seed, "reg_covar": 0.03}
    lasso = find("density.regression.lasso").load()
    plain = find("density.regression.polynomial").load()
    with quietly():
        fits = [lasso(**options, penalty=p, tol=1e-4).fit(*known) for p in PENALTIES]
        free = plain(**options).fit(*known)
    best = min(fits, key=lambda model: loss(model, chosen_on))
    return loss(best, test), loss(free, test), support_f1(best)


def claim(bench: Bench) -> Evidence:
    """Held-out loss of the lasso, its penalty chosen on other rows, against the fit without a penalty."""
    lasso, plain, f1 = series(bench, measure)
    evidence = weigh("With many more columns than matter, the l1-penalised mixture of experts has the smaller KL loss",
                     "held-out nats a row", lasso, plain,
                     note=f"support F1 {said(f1)}; 200 rows, 100 columns, 5 of them active")
    return beside(evidence, **{"support F1": f1})
