"""Groups with one long side and heavy tails are described better by skew-t components than by skew-normal ones.

Paper: Lin, Lee, Hsieh (2007), Robust Mixture Modeling Using the Skew t Distribution.
Tried: two groups, two columns of skew-t variables of skew 4 and 3 degrees of freedom, some scales apart; 400 rows to
fit and as many held out; two components against skew-normal and Gaussian ones, of which BIC chooses one to six;
held-out log density a row against that of the better rival. Against it: a density that is no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._data import quietly, starts
from mixwell.claims.density._families import ROWS, chosen, diagonal
from mixwell.density.mixtures.skew_normal import SkewNormalMixture
from mixwell.density.mixtures.skew_t import SkewTMixture

CENTRES = np.array([[0.0, 16.0], [16.0, 0.0]])  # of the groups, by column
DOF = 3

CLAIM = Claim("Groups with one long side and heavy tails are described better by skew-t components than by "
              "skew-normal or Gaussian ones.",
              "held-out log density, nats a row", lower_is_better=False)


def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Rows of two groups."""
    group = rng.integers(0, 2, rows)
    centres = CENTRES[group]
    hidden = np.abs(rng.normal(size=centres.shape))
    noise = rng.normal(size=centres.shape)
    square = rng.chisquare(DOF, centres.shape)
    spread = 2 * hidden + 0.5 * noise
    return centres + spread / np.sqrt(square / DOF)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Held-out densities, and how many components the rivals chose."""
    rng = np.random.default_rng(seed)
    x_ND = draw(rng, ROWS)
    held_ND = draw(rng, ROWS)
    options = starts(seed)
    with quietly():
        own = SkewTMixture(2, random_state=seed).fit(x_ND)
    rivals = [chosen(kind, options, x_ND) for kind in (SkewNormalMixture, diagonal)]
    scores = [rival.score(held_ND) for rival in rivals]
    return {
        "method": own.score(held_ND),
        "baseline": max(scores),
        "skew-normal components": float(rivals[0].n_components),
        "Gaussian components": float(rivals[1].n_components),
    }
