"""Zero-inflated negative binomial mixture: overdispersed counts with zeros of two origins, columns independent.

**Equation:** p(x) = sum_k w_k prod_d (z_kd [x_d = 0] + (1 - z_kd) NB(x_d; m_kd, s_kd)), NB of mean m and variance
m + m^2 / s. M step: with n rows, n_0 of them zero, t = z / (z + (1 - z) NB(0)) is the share of zeros that are no
counts; z = n_0 t / n, and m and s are those of `negative_binomial` for the n - n_0 t counts; repeated `INNER` times
with the same sums, each of which raises the same lower bound.

**Shapes:** X (N, D), not negative; `weights_` (K,), `means_` (K, D) and `sizes_` (K, D) of the counts, `zero_shares_`
(K, D) are z.

**Reference:** Lambert (1992), Zero-Inflated Poisson Regression, with an Application to Defects in Manufacturing; Greene
(1994), Accounting for Excess Zeros and Sample Selection in Poisson and Negative Binomial Regression Models.

**Differs:** the bound that the sizes climb is that of `negative_binomial`.

**Fails when:** few counts lie above zero: z and s explain the same zeros, and EM is slow. There is no online EM.

**Cost:** as `negative_binomial`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density.mixtures._columns import CountMixture
from mixwell.density.mixtures._parts import MixtureConfig
from mixwell.density.mixtures.em.columns import ColumnFamily
from mixwell.density.mixtures.em.exponential import share
from mixwell.density.mixtures.em.loop import Params, with_fixed
from mixwell.density.mixtures.negative_binomial import (
    SMALLEST_MEAN,
    better_size,
    draw_overdispersed,
    log_pmf,
    rising_slopes,
    size_of_moments,
)

INNER = 4  # M steps for one pass over the rows
FIRST = 0.5  # share of the zeros that a start takes for no counts
LARGEST_SHARE = 1 - 1e-12


class ZeroInflatedNegativeBinomial(ColumnFamily):
    """Statistics are the negative binomial's, and whether a count is zero."""

    harmless = 0.0
    tables = True

    def log_density(self, x: Tensor, params: Params) -> Tensor:
        inflation = params["zero_shares"]
        counted = torch.log1p(-inflation) + log_pmf(x, params["means"], params["sizes"])
        of_zero = torch.logaddexp(inflation.log(), counted)
        return torch.where(x == 0, of_zero, counted)

    def statistics(self, x: Tensor, params: Params | None) -> Sequence[Tensor]:
        zero = (x == 0).double()
        if params is None:
            return zero, x, x**2
        return zero, x, *rising_slopes(x, params["sizes"])

    def estimate(self, seen_SKD: Tensor, sums_MSKD: Tensor, params: Params | None) -> Params:
        zeros, total, *rest = sums_MSKD
        if params is None:
            structural = FIRST * zeros
            counted = seen_SKD - structural
            mean = share(total, counted, 1.0).clamp(min=SMALLEST_MEAN)
            square = share(rest[0], counted, 2.0)
            size = size_of_moments(mean, square)
            return {"means": mean, "sizes": size, "zero_shares": share(structural, seen_SKD, FIRST)}
        first, second = rest
        new = params
        for _ in range(INNER):
            structural = zeros * self._structural(new)
            counted = seen_SKD - structural
            found = {"means": share(total, counted, 1.0).clamp(min=SMALLEST_MEAN),
                     "zero_shares": share(structural, seen_SKD, FIRST).clamp(max=LARGEST_SHARE)}
            new = params | with_fixed(self.fixed, found, params)
            if "sizes" not in self.fixed:
                new["sizes"] = better_size(counted, total, new["means"], first, second, params["sizes"])
        return {name: new[name] for name in ("means", "sizes", "zero_shares")}

    def _structural(self, params: Params) -> Tensor:
        """Share of zeros that are no counts."""
        inflation, size = params["zero_shares"], params["sizes"]
        log_zero = -size * torch.log1p(params["means"] / size)
        counted = (1 - inflation) * log_zero.exp()
        return inflation / (inflation + counted)


@method(title="Zero-inflated negative binomial mixture", year=1994,
        tags={"estimator", "mixture", "missing", "counts"})
class ZeroInflatedNegativeBinomialMixture(CountMixture, config=MixtureConfig):
    """Mixture of independent zero-inflated overdispersed counts; NaN marks a missing one. As `GaussianMixture`."""

    _attributes: ClassVar[dict[str, str]] = {"means": "means_", "sizes": "sizes_", "zero_shares": "zero_shares_"}
    _fixable = ("weights", "means", "sizes", "zero_shares")
    _family_class = ZeroInflatedNegativeBinomial
    _averages = False

    def _variates(self, rng: np.random.RandomState, **params_ND: np.ndarray) -> np.ndarray:
        counts_ND = draw_overdispersed(rng, params_ND["means"], params_ND["sizes"])
        inflation_ND = params_ND["zero_shares"]
        counted_ND = rng.uniform(size=inflation_ND.shape) >= inflation_ND
        return counts_ND * counted_ND


def example(generator: torch.Generator) -> dict[str, Any]:
    """Overdispersed counts of two kinds of rows, a fifth of them zeros of another origin."""
    means_2D = torch.tensor([[4.0, 16.0], [18.0, 5.0]], dtype=torch.float64)
    means_ND = means_2D.repeat_interleave(100, 0)
    square_CND = torch.randn(12, 200, 2, generator=generator, dtype=torch.float64) ** 2
    factor_ND = square_CND.mean(0)  # a gamma variable of shape 6 and mean 1
    counted_ND = torch.rand(200, 2, generator=generator) >= 0.2
    x_ND = torch.poisson(means_ND * factor_ND, generator=generator) * counted_ND
    return {"estimator": ZeroInflatedNegativeBinomialMixture(2, random_state=0), "X": x_ND.numpy()}
