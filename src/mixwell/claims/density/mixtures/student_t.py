"""Student-t mixture: gross outliers move its means less than a Gaussian mixture's.

Paper: Robust Mixture Modelling using the t Distribution.
Tried: three groups of 100 rows in the plane and 25 rows (8 %) spread evenly over a square of side 40; root mean square
distance of the fitted means from the groups' under the best matching, mean of five data sets, five starts each; a
Gaussian mixture of three components as the baseline. Beside it: the best three of a Gaussian mixture of four, whose
fourth may take the outliers. Against it: a distance that is no smaller than the baseline's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixwell.claims._series import mean
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._data import matched_rms, on_circle, starts
from mixwell.density.mixtures.gaussian import GaussianMixture
from mixwell.density.mixtures.student_t import StudentTMixture

GROUPS, ROWS, OUTLIERS, SETS = 3, 100, 25, 5

CLAIM = Claim("Means of t mixtures stay where they are under gross outliers.",
              "root mean square distance of the means, in the data's unit")


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows (325, 2) and the groups' means (3, 2), on a circle of radius 4."""
    means = on_circle(rng, GROUPS, 4)
    roots = 0.5 * rng.normal(size=(GROUPS, 2, 2)) + 0.5 * np.eye(2)
    groups = []
    for mean_D, root in zip(means, roots):
        noise = rng.normal(size=(ROWS, 2))
        groups.append(mean_D + noise @ root)
    outliers = rng.uniform(-20, 20, (OUTLIERS, 2))
    return np.vstack([*groups, outliers]), means


def distance(model: Any, x: np.ndarray, means: np.ndarray) -> float:
    """Root mean square distance of the matched means."""
    found = model.fit(x).means_
    gap = means[:, None] - found
    return matched_rms((gap**2).sum(-1))


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Distances of the means of three models, mean of the data sets."""
    rng = np.random.default_rng(seed)
    options = starts(seed)
    models = {"method": StudentTMixture(GROUPS, **options), "baseline": GaussianMixture(GROUPS, **options),
              "Gaussian of four": GaussianMixture(GROUPS + 1, **options)}
    sets = [draw(rng) for _ in range(SETS)]
    return {name: mean(distance(model, x, means) for x, means in sets) for name, model in models.items()}
