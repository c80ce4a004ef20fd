"""First passage times are described better by inverse Gaussian components than by gamma or by Gaussian ones.

Paper: Tweedie (1957), Statistical Properties of Inverse Gaussian Distributions.
Tried: two groups, two columns of inverse Gaussian variables of means 1 and 6 and shape 2; 400 rows to fit and as many
held out; the number of components by BIC, one to six, for both sides; held-out log density a row against that of the
better rival. Against it: a density that is no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._families import ROWS, Build, against, diagonal
from mixwell.density.mixtures.gamma import GammaMixture
from mixwell.density.mixtures.inverse_gaussian import InverseGaussianMixture

MEANS = np.array([[1.0, 6.0], [6.0, 1.0]])  # of the groups, by column
RIVALS: dict[str, Build] = {"gamma": GammaMixture, "Gaussian": diagonal}

CLAIM = Claim("First passage times are described better by inverse Gaussian components than by gamma or "
              "by Gaussian ones.",
              "held-out log density, nats a row", lower_is_better=False)


def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Rows of two groups."""
    group = rng.integers(0, 2, rows)
    means = MEANS[group]
    return rng.wald(means, 2.0)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Held-out densities, and how many components were chosen."""
    rng = np.random.default_rng(seed)
    x = draw(rng, ROWS)
    held = draw(rng, ROWS)
    return against(InverseGaussianMixture, RIVALS, x, held, seed)
