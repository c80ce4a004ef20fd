"""Zero-inflated Poisson mixture: counts with zeros of two origins, columns independent within each component.

**Equation:** p(x) = sum_k w_k prod_d (z_kd [x_d = 0] + (1 - z_kd) Poisson(x_d; l_kd)), linear in the statistics x and
[x = 0]. M step, exact: l / (1 - exp(-l)) is the weighted mean of the counts above zero, by Newton's method from above,
and z = (s - exp(-l)) / (1 - exp(-l)) with s the share of zeros; where s is below exp(-l), z = 0 and l is the mean.

**Shapes:** X (N, D), not negative; `weights_` (K,), `rates_` (K, D), `zero_shares_` (K, D) are z.

**Reference:** Lambert (1992), Zero-Inflated Poisson Regression, with an Application to Defects in Manufacturing.

**Differs:** the paper's second, inner EM over the origin of zeros is replaced by the M step's closed form.

**Fails when:** counts above zero are overdispersed (`zero_inflated_negative_binomial`); a component holds few rows
above zero, where z and l trade off.

**Cost:** O(N K D) a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density.mixtures._columns import CountMixture, draw_counts
from mixwell.density.mixtures._parts import MixtureConfig
from mixwell.density.mixtures.em.columns import ExponentialColumns
from mixwell.density.mixtures.em.exponential import share
from mixwell.density.mixtures.em.loop import Params

SMALLEST_RATE = 1e-10  # so that a column without counts keeps a finite log rate
LARGEST_SHARE = 1 - 1e-12  # of zeros that are no counts


def rate_above_zero(mean: Tensor) -> Tensor:
    """Rates of Poisson counts whose mean, zeros left out, is this: l / (1 - exp(-l)) = mean."""
    mean = mean.clamp(min=1 + 1e-12)
    rate = mean
    for _ in range(40):  # from above a convex function's root is approached from above
        lost = torch.exp(-rate)
        rest = rate + mean * torch.expm1(-rate)
        rate = (rate - rest / (1 - mean * lost)).clamp(min=SMALLEST_RATE)
    return rate


class ZeroInflatedPoisson(ExponentialColumns):
    """Statistics are the count, and whether it is zero."""

    statistics = 2
    harmless = 0.0

    def transforms(self, x_DB: Tensor) -> Sequence[Tensor]:
        return x_DB, (x_DB == 0).double()

    def log_base(self, x_DB: Tensor) -> Tensor:
        return -torch.lgamma(x_DB + 1)

    def coefficients(self, params: Params) -> Sequence[Tensor]:
        rate, inflation = params["rates"], params["zero_shares"]
        counted = torch.log1p(-inflation)
        of_zero = torch.logaddexp(inflation.log(), counted - rate)
        constant = counted - rate
        return rate.log(), of_zero - constant, constant

    def estimate(self, means: Sequence[Tensor], params: Params | None) -> Params:
        mean, zeros = means
        if params is not None and self.fixed:
            return self._beside_fixed(mean, zeros, params)
        above = share(mean, 1 - zeros, 1.0)
        rate = rate_above_zero(above)
        lost = torch.exp(-rate)
        inflation = (zeros - lost) / (-torch.expm1(-rate))
        fewer = inflation <= 0  # zeros than a Poisson variable has
        rate = torch.where(fewer, mean, rate).clamp(min=SMALLEST_RATE)
        return {"rates": rate, "zero_shares": inflation.clamp(0, LARGEST_SHARE)}

    def _beside_fixed(self, mean: Tensor, zeros: Tensor, params: Params) -> Params:
        """A step of the EM over the origin of zeros, which goes up beside a parameter that stays."""
        rate, inflation = params["rates"], params["zero_shares"]
        counted = (1 - inflation) * torch.exp(-rate)
        structural = zeros * inflation / (inflation + counted).clamp(min=SMALLEST_RATE)
        new_rate = (mean / (1 - structural).clamp(min=SMALLEST_RATE)).clamp(min=SMALLEST_RATE)
        return {"rates": new_rate, "zero_shares": structural.clamp(max=LARGEST_SHARE)}


@method(title="Zero-inflated Poisson mixture", year=1992, tags={"estimator", "mixture", "missing", "online", "counts"})
class ZeroInflatedPoissonMixture(CountMixture, config=MixtureConfig):
    """Mixture of independent zero-inflated Poisson counts; NaN marks a missing one. Options as `GaussianMixture`'s."""

    _attributes: ClassVar[dict[str, str]] = {"rates": "rates_", "zero_shares": "zero_shares_"}
    _fixable = ("weights", "rates", "zero_shares")
    _family_class = ZeroInflatedPoisson

    def _variates(self, rng: np.random.RandomState, **params_ND: np.ndarray) -> np.ndarray:
        counts_ND = draw_counts(rng, params_ND["rates"])
        inflation_ND = params_ND["zero_shares"]
        counted_ND = rng.uniform(size=inflation_ND.shape) >= inflation_ND
        return counts_ND * counted_ND


def example(generator: torch.Generator) -> dict[str, Any]:
    """Counts of two kinds of rows, a tenth of them zeros of another origin."""
    rates_2D = torch.tensor([[3.0, 12.0], [15.0, 4.0]], dtype=torch.float64)
    rates_ND = rates_2D.repeat_interleave(60, 0)
    counted_ND = torch.rand(120, 2, generator=generator) >= 0.1
    x_ND = torch.poisson(rates_ND, generator=generator) * counted_ND
    return {"estimator": ZeroInflatedPoissonMixture(2, random_state=0), "X": x_ND.numpy()}
