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

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density.mixtures._parts import MixtureConfig
from mixwell.density.mixtures._plain import PlainMixture
from mixwell.density.mixtures._scores import as_array
from mixwell.density.mixtures.em.exponential import ExponentialFamily, Sums, share
from mixwell.density.mixtures.em.loop import Params
from mixwell.density.mixtures.em.rows import Rows, column_name

SMALLEST_RATE = 1e-10  # so that a column without counts keeps a finite log rate
LARGEST_DRAW = 9.2e18  # rate: beyond it counts do not fit into 64 bits


class Poisson(ExponentialFamily):
    """Features are the counts and which of them are there."""

    def __init__(self, columns: int, fixed: tuple[str, ...]) -> None:
        super().__init__(fixed)
        self.columns, self.feature_count = columns, 2 * columns

    def features(self, x_BD: Tensor) -> Tensor:
        seen_DB = ~torch.isnan(x_BD.T)
        counts_DB = torch.where(seen_DB, x_BD.T, 0.0)
        return torch.cat([counts_DB.double(), seen_DB.double()])

    def base(self, x_BD: Tensor) -> Tensor:
        counts_BD = torch.nan_to_num(x_BD).double()
        log_factorial_BD = torch.lgamma(counts_BD + 1)
        return -log_factorial_BD.sum(1)

    def natural(self, params: Params) -> tuple[Tensor, Tensor]:
        rates_SKD = params["rates"]
        natural_SKP = torch.cat([rates_SKD.log(), -rates_SKD], -1)
        return natural_SKP, torch.zeros_like(params["weights"])

    def update(self, sums: Sums, params: Params | None) -> Params:
        totals, seen = sums.sums_SKP.split(self.columns, -1)
        otherwise = 1.0 if params is None else params["rates"]
        rates = share(totals, seen, otherwise)
        return {"rates": rates.clamp(min=SMALLEST_RATE)}


@method(title="Poisson mixture", year=2005, tags={"estimator", "mixture", "missing", "online", "counts"})
class PoissonMixture(PlainMixture, config=MixtureConfig):
    """Mixture of independent Poisson counts; NaN marks a missing count. Parameters as `GaussianMixture`'s."""

    _attributes: ClassVar[dict[str, str]] = {"rates": "rates_"}
    _fixable = ("weights", "rates")
    _allow_nan = True

    def _family(self, columns: int, device: torch.device) -> Poisson:
        return Poisson(columns, self._fixed())

    def _check_input(self, rows: Rows) -> None:
        for start, chunk in rows.chunks():
            negative_BD = chunk < 0
            if bool(negative_BD.any()):
                row, column = negative_BD.nonzero()[0].tolist()
                name = column_name(rows.names, column)
                raise ValueError(f"Negative values in data passed to PoissonMixture: row {start + row}, column {name}; "
                                 "expected counts.")

    def _start_points(self, x_ND: np.ndarray) -> np.ndarray:
        return np.sqrt(x_ND)  # about the same variance for every rate

    def _n_parameters(self) -> int:
        K, D = self.rates_.shape
        return self._count_free({"weights": K - 1, "rates": K * D})

    def _draw(self, rng: np.random.RandomState, counts_K: np.ndarray) -> np.ndarray:
        rates_KD = as_array(self.rates_)
        rates_ND = np.repeat(rates_KD, counts_K, axis=0)
        largest = rates_ND.max(initial=0)
        if largest > LARGEST_DRAW:
            raise ValueError(f"a rate of {largest:g} is too large to draw counts from; expected at most "
                             f"{LARGEST_DRAW:g}. Fit to counts in larger units.")
        counts_ND = rng.poisson(rates_ND)
        return counts_ND.astype(float)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags


def example(generator: torch.Generator) -> dict[str, Any]:
    """Counts of two kinds of rows."""
    rates_2D = torch.tensor([[2.0, 12.0], [15.0, 3.0]], dtype=torch.float64)
    rates_ND = rates_2D.repeat_interleave(60, 0)
    x_ND = torch.poisson(rates_ND, generator=generator)
    return {"estimator": PoissonMixture(2, random_state=0), "X": x_ND.numpy()}
