"""Lasso mixture of experts: where columns are many, the penalty predicts better and finds what matters.

Paper: Non-asymptotic oracle inequalities for the Lasso in high-dimensional mixture of experts.
Tried: 200 rows of two linear experts, five of a hundred columns active, five starts each; nats a row on 2,000 fresh
rows, of five penalties the one that is best on 200 other rows, against the fit without a penalty, of five variance
floors the one that is best there. Beside it: one expert with the best penalty, and F1 of the columns that are kept.
Against it: a loss that is no smaller.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._data import logistic, quietly
from mixwell.core.registry import find

ROWS, COLUMNS = 200, 100
PENALTIES = (0.06, 0.08, 0.1, 0.12, 0.15)
FLOORS = (0.03, 0.1, 0.2, 0.4, 0.8)  # of variances, as shares of the outcomes'; what the fit without a penalty has

CLAIM = Claim("With many more columns than matter, the l1-penalised mixture of experts has the smaller KL loss.",
              "held-out nats a row")


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


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Held-out losses of the best penalty, of the best fit without one and of one expert; the support's F1."""
    rng = np.random.default_rng(seed)
    known = simulate(rng, ROWS)
    chosen_on = simulate(rng, 200)
    test = simulate(rng, 2000)
    lasso = find("density.regression.lasso").load()
    plain = find("density.regression.polynomial").load()
    options = {"init": "random", "n_init": 5, "random_state": seed}
    penalised = {"reg_covar": 0.03, "tol": 1e-4}

    def best(models: Iterable[Any]) -> Any:
        with quietly():
            fits = [model.fit(*known) for model in models]
        return min(fits, key=lambda model: loss(model, chosen_on))

    sparse = best(lasso(**options, **penalised, penalty=penalty) for penalty in PENALTIES)
    free = best(plain(**options, reg_covar=floor) for floor in FLOORS)
    single = best(lasso(n_experts=1, **penalised, penalty=penalty) for penalty in PENALTIES)
    return {"method": loss(sparse, test), "baseline": loss(free, test), "one expert": loss(single, test),
            "support F1": support_f1(sparse)}
