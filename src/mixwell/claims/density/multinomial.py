"""Multinomial experts: a transformed gate restores fast estimates where an expert's slopes vanish."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find

SIZES, REPEATS = (500, 2000, 8000), 2
GATE = np.array([[0.0, 0.75], [0.0, -0.75]])
EXPERTS = np.array([[[-0.8, 0.0], [0.8, 0.0]], [[0.0, 1.5], [0.0, -1.5]]])  # the first expert has no slope


def loss(rows: int, transform: str, rng: np.random.Generator, seed: int) -> float:
    """Voronoi loss of three experts fitted to two."""
    x = rng.normal(size=(rows, 1))
    x = (x - x.mean()) / x.std()
    seen = np.tanh(x) if transform == "tanh" else x
    first = rng.random(rows) < 1 / (1 + np.exp(-(GATE[0, 1] - GATE[1, 1]) * seen[:, 0]))
    expert = EXPERTS[np.where(first, 0, 1)]
    odds = (expert[:, 1] - expert[:, 0]) * np.column_stack([np.ones(rows), x])
    y = (rng.random(rows) < 1 / (1 + np.exp(-odds.sum(1)))).astype(int)
    method = find("density.regression.multinomial")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = method.load()(n_experts=3, gate_transform=transform, random_state=seed, max_iter=100, tol=1e-7,
                              ridge=1e-2).fit(x, y)
    return method.module().voronoi_loss(model.gate_coef_, model.coef_, GATE, EXPERTS)


def claim(bench: Any) -> Evidence:
    """Slopes of log loss against log rows, by gate."""
    rates: dict[str, list[float]] = {"tanh": [], "identity": []}
    for seed in bench.seeds:
        for transform, found in rates.items():
            rng = np.random.default_rng(seed)
            losses = [np.mean([loss(n, transform, rng, seed) for _ in range(REPEATS)]) for n in SIZES]
            found.append(float(np.polyfit(np.log(SIZES), np.log(losses), 1)[0]))
    return weigh("With an expert without slopes and one too many, a transformed gate's parameters converge faster",
                 "slope of log Voronoi loss against log rows", rates["tanh"], rates["identity"],
                 note=f"two classes, one column, rows {SIZES}, {REPEATS} data sets each, EM from k-means")
