"""Shares are described better by beta components than by Gaussian ones.

Paper: Gnanadesikan, Pinkham, Hughes (1967).
Tried: two groups, two columns of beta variables of sizes 4 and means 0.2 and 0.8; 400 rows to fit and as many held
out; the number of components by BIC, one to six, for both sides; held-out log density a row against that of the
better rival. Against it: a density that is no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._families import ROWS, Build, against, diagonal
from mixwell.density.mixtures.beta import BetaMixture

MEANS = np.array([[0.2, 0.8], [0.8, 0.2]])  # of the groups, by column
RIVALS: dict[str, Build] = {"Gaussian": diagonal}

CLAIM = Claim("Shares are described better by beta components than by Gaussian ones.",
              "held-out log density, nats a row", lower_is_better=False)


def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Rows of two groups."""
    group = rng.integers(0, 2, rows)
    means = MEANS[group]
    rest = 1 - means
    share = rng.beta(4 * means, 4 * rest)
    return np.clip(share, 1e-9, 1 - 1e-9)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Held-out densities, and how many components were chosen."""
    rng = np.random.default_rng(seed)
    x = draw(rng, ROWS)
    held = draw(rng, ROWS)
    return against(BetaMixture, RIVALS, x, held, seed)
