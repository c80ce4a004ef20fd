"""Poisson mixture: counts whose columns are independent Poisson variables within each component.

**Equation:** p(x) = sum_k w_k prod_d exp(-lambda_kd) lambda_kd^x_d / x_d!. M step: lambda_kd is the responsibility-
weighted mean of column d over the rows where it is observed.

**Shapes:** X (N, D), not negative; `weights_` (K,), `rates_` (K, D).

**Reference:** Dempster, Laird, Rubin (1977), Maximum Likelihood from Incomplete Data via the EM Algorithm; Karlis,
Xekalaki (2005), Mixed Poisson Distributions.

**Differs:** numbers that are not whole are taken with Gamma(x + 1) for the factorial; rates are kept above 1e-10.

**Fails when:** the counts are overdispersed within components (variance above the mean): components multiply to follow.

**Cost:** O(N K D) a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density.mixtures._columns import draw_counts
from mixwell.density.mixtures._graphs import LinearMixture
from mixwell.density.mixtures._parts import MixtureConfig
from mixwell.density.mixtures.em.columns import ExponentialColumns
from mixwell.density.mixtures.em.loop import Params

SMALLEST_RATE = 1e-10  # so that a column without counts keeps a finite log rate


class Poisson(ExponentialColumns):
    """The statistic is the count itself."""

    statistics = 1
    harmless = 0.0

    def transforms(self, x_DB: Tensor) -> Sequence[Tensor]:
        return (x_DB,)

    def log_base(self, x_DB: Tensor) -> Tensor:
        return -torch.lgamma(x_DB + 1)

    def coefficients(self, params: Params) -> Sequence[Tensor]:
        rates_SKD = params["rates"]
        return rates_SKD.log(), -rates_SKD

    def estimate(self, means: Sequence[Tensor], params: Params | None) -> Params:
        (mean_SKD,) = means
        return {"rates": mean_SKD.clamp(min=SMALLEST_RATE)}


@method(title="Poisson mixture", year=2005, tags={"estimator", "mixture", "missing", "online", "counts"})
class PoissonMixture(LinearMixture, config=MixtureConfig):
    """Mixture of independent Poisson counts; NaN marks a missing count. Parameters as `GaussianMixture`'s."""

    _attributes: ClassVar[dict[str, str]] = {"rates": "rates_"}
    _fixable = ("weights", "rates")
    _partly = ("weights", "rates")
    _family_class = Poisson

    def _variates(self, rng: np.random.RandomState, **params_ND: np.ndarray) -> np.ndarray:
        return draw_counts(rng, params_ND["rates"])


def example(generator: torch.Generator) -> dict[str, Any]:
    """Counts of two kinds of rows."""
    rates_2D = torch.tensor([[2.0, 12.0], [15.0, 3.0]], dtype=torch.float64)
    rates_ND = rates_2D.repeat_interleave(60, 0)
    x_ND = torch.poisson(rates_ND, generator=generator)
    return {"estimator": PoissonMixture(2, random_state=0), "X": x_ND.numpy()}
