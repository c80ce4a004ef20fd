"""Shared by the claims on families of components: held-out density of rows that a family has drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mixwell.claims.density._data import quietly, starts
from mixwell.density.mixtures.gaussian import GaussianMixture

ROWS = 400  # to fit, and as many to be held out
NUMBERS = (1, 2, 3, 4, 5, 6)  # of components that a criterion chooses from
Build = Callable[..., Any]  # a mixture of so many components


def chosen(build: Build, options: dict[str, Any], x_ND: np.ndarray) -> Any:
    """The fit that BIC likes best."""
    with quietly():
        fits = [build(k, **options).fit(x_ND) for k in NUMBERS]
    return min(fits, key=lambda model: model.bic(x_ND))


def against(kind: Build, rivals: dict[str, Build], x_ND: np.ndarray, held_ND: np.ndarray,
            seed: int) -> dict[str, float]:
    """Held-out log density a row, and the numbers of components, of a family and of the best of its rivals."""
    options = starts(seed)
    own = chosen(kind, options, x_ND)
    others = [chosen(rival, options, x_ND) for rival in rivals.values()]
    other = max(others, key=lambda model: model.score(held_ND))
    return {
        "method": own.score(held_ND),
        "baseline": other.score(held_ND),
        "components": float(own.n_components),
        "rival's components": float(other.n_components),
    }


def diagonal(n_components: int, **options: Any) -> GaussianMixture:
    """Gaussian components with variances alone."""
    return GaussianMixture(n_components, covariance_type="diag", reg_covar=1e-3, **options)
