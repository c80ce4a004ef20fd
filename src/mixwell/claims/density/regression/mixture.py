"""Rows that are known to share their component tell which of two crossing regressions they follow.

Paper: Gruen and Leisch (2008), FlexMix Version 2: Finite Mixtures with Concomitant Variables and Varying and Constant
Parameters.
Tried: a line and a parabola that cross, noise 3, 200 rows of which four at a time are measurements of one unit; share
of rows whose component is found by a fit that knows the units, against a fit that does not. Against it: a share that
is no larger by 0.01.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._data import quietly
from mixwell.density.regression.mixture import RegressionMixture

UNITS, ROWS = 50, 4  # of a unit

CLAIM = Claim("Rows known to share their component are told apart better in a mixture of regressions.",
              "share of rows whose component is found", lower_is_better=False, at_least=0.01)


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (N, 2) of x and its square, targets (N,), and true components (N,)."""
    kind_U = np.arange(UNITS) % 2
    kind_N = kind_U.repeat(ROWS)
    x_N = rng.uniform(0, 10, UNITS * ROWS)
    line_N = 5 * x_N
    parabola_N = 40 - (x_N - 5) ** 2
    noise_N = 3 * rng.normal(size=len(x_N))
    y_N = np.where(kind_N == 0, line_N, parabola_N) + noise_N
    x_ND = np.column_stack([x_N, x_N**2])
    return x_ND, y_N, kind_N


def found(resp_NK: np.ndarray, kind_N: np.ndarray) -> float:
    """Share of rows whose component is right, whatever the components' names."""
    right_N = resp_NK.argmax(1) == kind_N
    share = float(right_N.mean())
    return max(share, 1 - share)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Shares with units and without."""
    rng = np.random.default_rng(seed)
    x_ND, y_N, kind_N = draw(rng)
    units_N = np.arange(UNITS).repeat(ROWS)
    with quietly():
        grouped = RegressionMixture(2, random_state=seed).fit(x_ND, y_N, groups=units_N)
        single = RegressionMixture(2, random_state=seed).fit(x_ND, y_N)
    return {
        "method": found(grouped.responsibilities(x_ND, y_N, groups=units_N), kind_N),
        "baseline": found(single.responsibilities(x_ND, y_N), kind_N),
    }
