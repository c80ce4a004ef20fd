"""Positive rows with long tails are described better by lognormal components than by Gaussian ones.

Paper: Aitchison, Brown (1957), The Lognormal Distribution.
Tried: two groups, two columns whose logarithms are normal with means 0 and 2 and deviation 0.7; 400 rows to fit and
as many held out; the number of components by BIC, one to six, for both sides; held-out log density a row against that
of the better rival. Against it: a density that is no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._families import ROWS, Build, against, diagonal
from mixwell.density.mixtures.lognormal import LognormalMixture

MEANS = np.array([[0.0, 2.0], [2.0, 0.0]])  # of the groups, by column
RIVALS: dict[str, Build] = {"Gaussian": diagonal}

CLAIM = Claim("Positive rows with long tails are described better by lognormal components than by "
              "Gaussian ones.",
              "held-out log density, nats a row", lower_is_better=False)


def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Rows of two groups."""
    group = rng.integers(0, 2, rows)
    means = MEANS[group]
    logs = rng.normal(means, 0.7)
    return np.exp(logs)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Held-out densities, and how many components were chosen."""
    rng = np.random.default_rng(seed)
    x = draw(rng, ROWS)
    held = draw(rng, ROWS)
    return against(LognormalMixture, RIVALS, x, held, seed)
