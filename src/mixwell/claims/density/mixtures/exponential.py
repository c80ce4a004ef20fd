"""Waiting times of two rates are described better by exponential components than by Gaussian ones.

Paper: Jewell (1982), Mixtures of Exponential Distributions.
Tried: two groups, two columns of exponential waiting times of means 1 and 20; 400 rows to fit and as many held out;
the number of components by BIC, one to six, for both sides; held-out log density a row against that of the better
rival. Against it: a density that is no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._families import ROWS, Build, against, diagonal
from mixwell.density.mixtures.exponential import ExponentialMixture

SCALES = np.array([[1.0, 20.0], [20.0, 1.0]])  # of the groups, by column
RIVALS: dict[str, Build] = {"Gaussian": diagonal}

CLAIM = Claim("Waiting times of two rates are described better by exponential components than by "
              "Gaussian ones.",
              "held-out log density, nats a row", lower_is_better=False)


def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Rows of two groups."""
    group = rng.integers(0, 2, rows)
    scales = SCALES[group]
    return rng.exponential(scales)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Held-out densities, and how many components were chosen."""
    rng = np.random.default_rng(seed)
    x = draw(rng, ROWS)
    held = draw(rng, ROWS)
    return against(ExponentialMixture, RIVALS, x, held, seed)
