"""Groups with one long side are described better by skew-normal components than by Gaussian ones.

Paper: Lin, Lee, Yen (2007), Finite Mixture Modelling Using the Skew Normal Distribution.
Tried: two groups, two columns of skew-normal variables of skew 6, three scales apart; 400 rows to fit and as many
held out; the number of components by BIC, one to six, for both sides; held-out log density a row against that of the
better rival. Against it: a density that is no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._families import ROWS, Build, against, diagonal
from mixwell.density.mixtures.skew_normal import SkewNormalMixture

CENTRES = np.array([[0.0, 6.0], [6.0, 0.0]])  # of the groups, by column
RIVALS: dict[str, Build] = {"Gaussian": diagonal}

CLAIM = Claim("Groups with one long side are described better by skew-normal components than by "
              "Gaussian ones.",
              "held-out log density, nats a row", lower_is_better=False)


def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Rows of two groups."""
    group = rng.integers(0, 2, rows)
    centres = CENTRES[group]
    hidden = np.abs(rng.normal(size=centres.shape))
    noise = rng.normal(size=centres.shape)
    return centres + 2 * hidden + 0.33 * noise


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Held-out densities, and how many components were chosen."""
    rng = np.random.default_rng(seed)
    x = draw(rng, ROWS)
    held = draw(rng, ROWS)
    return against(SkewNormalMixture, RIVALS, x, held, seed)
