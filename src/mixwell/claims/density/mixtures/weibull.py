"""Lifetimes are described better by Weibull components than by gamma or by Gaussian ones.

Paper: Buecar, Nagode, Fajdiga (2004), Reliability Approximation using Finite Weibull Mixture Distributions.
Tried: two groups, two columns of Weibull lifetimes of shapes 1 and 4 and scales 1 and 6; 400 rows to fit and as many
held out; the number of components by BIC, one to six, for both sides; held-out log density a row against that of the
better rival. Against it: a density that is no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._families import ROWS, Build, against, diagonal
from mixwell.density.mixtures.gamma import GammaMixture
from mixwell.density.mixtures.weibull import WeibullMixture

RIVALS: dict[str, Build] = {"gamma": GammaMixture, "Gaussian": diagonal}

CLAIM = Claim("Lifetimes are described better by Weibull components than by gamma or by Gaussian ones.",
              "held-out log density, nats a row", lower_is_better=False)


def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Rows of two groups."""
    group = rng.integers(0, 2, rows)
    shapes = np.array([[1.0, 4.0], [4.0, 1.0]])[group]
    scales = np.array([[1.0, 6.0], [6.0, 1.0]])[group]
    return np.maximum(scales * rng.weibull(shapes), 1e-9)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Held-out densities, and how many components were chosen."""
    rng = np.random.default_rng(seed)
    x = draw(rng, ROWS)
    held = draw(rng, ROWS)
    return against(WeibullMixture, RIVALS, x, held, seed)
