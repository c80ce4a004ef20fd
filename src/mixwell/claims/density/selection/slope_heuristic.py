"""Slope heuristic: where no model is true, the penalty read off the data risks less on fresh rows than BIC's.

Paper: Slope heuristics: overview and implementation.
Tried: 800 rows from two even squares, an even disc and a ring, none of them Gaussian; Gaussian mixtures of 1 to 16
components, three starts each; nats a row on 20,000 fresh rows that the choice loses against the best of the sixteen,
mean of two data sets, the slope heuristic against BIC. Beside it: AIC, and the numbers chosen. Against it: a loss that
is no smaller.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixwell.claims._series import means
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.density.mixtures.gaussian import GaussianMixture
from mixwell.density.selection.slope_heuristic import slope_heuristic

ROWS, FRESH, NUMBERS, SETS = 800, 20_000, range(1, 17), 2
CENTRES = np.array([[4, 0], [0, 4], [-4, 0], [0, -4]])

CLAIM = Claim("The slope heuristic risks less than BIC where no model is true.",
              "held-out nats a row lost against the best model")


def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Rows (rows, 2): two squares, a disc, a ring."""
    angle = 2 * np.pi * rng.random(rows)
    square = rng.uniform(-1, 1, (rows, 2))
    turn = np.stack([np.cos(angle), np.sin(angle)], 1)
    share = rng.random((rows, 1))
    disc = np.sqrt(share) * turn
    radius = 1.5 + 0.1 * rng.normal(size=(rows, 1))
    ring = radius * turn
    shapes = np.stack([square, 0.5 * square, disc, ring])
    placed = shapes + CENTRES[:, None]
    which = rng.integers(4, size=rows)
    return placed[which, np.arange(rows)]


def choices(fits: list[GaussianMixture], x: np.ndarray) -> dict[str, int]:
    """Which of the fits each criterion chooses."""
    sizes = [model._n_parameters() for model in fits]
    heights = [len(x) * model.score(x) for model in fits]
    slope, _, _ = slope_heuristic(np.array(heights), np.array(sizes))
    by_bic = np.argmin([model.bic(x) for model in fits])
    by_aic = np.argmin([model.aic(x) for model in fits])
    return {"method": slope, "baseline": int(by_bic), "AIC": int(by_aic)}


def one_set(rng: np.random.Generator, seed: int) -> dict[str, float]:
    """What each choice loses on fresh rows, and its number of components."""
    x, fresh = draw(rng, ROWS), draw(rng, FRESH)
    options: dict[str, Any] = {"n_init": 3, "tol": 1e-4, "max_iter": 500, "random_state": seed}
    fits = [GaussianMixture(k, **options).fit(x) for k in NUMBERS]
    risks = [-model.score(fresh) for model in fits]
    least = int(np.argmin(risks))
    picks = choices(fits, x)
    found: dict[str, float] = {name: risks[pick] - risks[least] for name, pick in picks.items()}
    picks["best"] = least
    for name, pick in picks.items():
        found[f"{name} components"] = NUMBERS[pick]
    return found


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Means of the data sets."""
    rng = np.random.default_rng(seed)
    return means([one_set(rng, seed) for _ in range(SETS)])
