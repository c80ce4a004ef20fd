"""Multinomial experts: a transformed gate restores fast estimates where an expert's slopes vanish.

Paper: A General Theory for Softmax Gating Multinomial Logistic Mixture of Experts.
Tried: two classes by one column from two experts, the first without slopes, fitted with three experts to 500, 2,000 and
8,000 rows, two data sets each; slope of log Voronoi loss against log rows, data and fit with a gate on tanh of the
column against data and fit with a gate on the column. Against it: a slope that is no steeper.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.density._data import logistic, quietly
from mixwell.core.registry import find

SIZES, REPEATS = (500, 2000, 8000), 2
GATE = np.array([[0.0, 0.75], [0.0, -0.75]])
EXPERTS = np.array([[[-0.8, 0.0], [0.8, 0.0]], [[0.0, 1.5], [0.0, -1.5]]])  # the first expert has no slope


def draw(rows: int, transform: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows (rows, 1), standardised, and classes (rows,) of two experts."""
    drawn = rng.normal(size=(rows, 1))
    x = (drawn - drawn.mean()) / drawn.std()
    seen = np.tanh(x) if transform == "tanh" else x
    slope = GATE[0, 1] - GATE[1, 1]
    first = rng.random(rows) < logistic(slope * seen[:, 0])
    expert = EXPERTS[np.where(first, 0, 1)]
    inputs = np.column_stack([np.ones(rows), x])
    odds = (expert[:, 1] - expert[:, 0]) * inputs
    second = rng.random(rows) < logistic(odds.sum(1))
    return x, second.astype(int)


def loss(rows: int, transform: str, rng: np.random.Generator, seed: int) -> float:
    """Voronoi loss of three experts fitted to two."""
    method = find("density.regression.multinomial")
    x, y = draw(rows, transform, rng)
    options = {"n_experts": 3, "max_iter": 100, "tol": 1e-7, "ridge": 1e-2}
    estimator = method.load()
    model = estimator(gate_transform=transform, random_state=seed, **options)
    with quietly():
        model.fit(x, y)
    return method.module().voronoi_loss(model.gate_coef_, model.coef_, GATE, EXPERTS)


def rate(bench: Bench, seed: int, *, transform: str) -> float:
    """Slope of log loss against log rows."""
    rng = np.random.default_rng(seed)
    losses = []
    for rows in SIZES:
        found = [loss(rows, transform, rng, seed) for _ in range(REPEATS)]
        average = np.mean(found)
        losses.append(average)
    slope, _ = np.polyfit(np.log(SIZES), np.log(losses), 1)
    return float(slope)


CLAIM = Claim("With an expert without slopes and one too many, a transformed gate's parameters converge faster.",
              "slope of log Voronoi loss against log rows",
              sides={"method": Side(rate, {"transform": "tanh"}), "baseline": Side(rate, {"transform": "identity"})})
