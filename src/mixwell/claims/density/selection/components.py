"""Number of components: BIC finds the true one more often than AIC, and as often as cross-validation.

Paper: Estimating the Dimension of a Model.
Tried: 300 rows of three Gaussians of their own covariances in the plane, centres on a circle of radius 3.5; one to six
components, two starts each; share of data sets (six a seed) with three chosen, BIC against AIC. Against it: a share
that is no higher, or one more than 0.05 below five-fold cross-validation's. Beside it: ICL.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, no_worse
from mixwell.claims.density._data import around, on_circle
from mixwell.density.mixtures.gaussian import GaussianMixture
from mixwell.density.selection.components import ComponentSearch

ROWS, GROUPS, NUMBERS, SETS = 300, 3, range(1, 7), 6
CRITERIA = {"method": "bic", "baseline": "aic", "ICL": "icl", "cross-validation": "cv"}

CLAIM = Claim("BIC finds the true number of components more often than AIC.", "share of data sets with the true number",
              lower_is_better=False,
              provided=(no_worse(margin=0.05, relative=False, baseline="cross-validation", lower_is_better=False),))


def draw(rng: np.random.Generator) -> np.ndarray:
    """Rows (ROWS, 2)."""
    means = on_circle(rng, GROUPS, 3.5)
    roots = 0.5 * rng.normal(size=(GROUPS, 2, 2)) + np.eye(2)
    label = rng.integers(GROUPS, size=ROWS)
    noise = rng.normal(size=(ROWS, 2))
    return around(means, roots, label, noise)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Share of data sets on which each criterion chooses the true number."""
    rng = np.random.default_rng(seed)
    sets = [draw(rng) for _ in range(SETS)]
    model = GaussianMixture(n_init=2, max_iter=500, random_state=seed)
    found = {}
    for name, criterion in CRITERIA.items():
        search = ComponentSearch(model, NUMBERS, criterion=criterion, random_state=seed)
        chosen = [search.fit(x).best_n_components_ for x in sets]
        found[name] = chosen.count(GROUPS) / SETS
    return found
