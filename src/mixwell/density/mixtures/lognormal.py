"""Lognormal mixture: positive rows whose logarithms are a Gaussian mixture, columns dependent or not.

**Equation:** p(x) = sum_k w_k N(log x; mu_k, Sigma_k) / prod_d x_d. EM is that of the Gaussian mixture on log x.

**Shapes:** X (N, D), above zero; attributes as `GaussianMixture`'s, of the logarithms: exp(`means_`) are the
components' medians.

**Reference:** Aitchison, Brown (1957), The Lognormal Distribution; Dempster, Laird, Rubin (1977).

**Differs:** all that `GaussianMixture` takes is there: covariance models, missing values, online EM.

**Fails when:** a column holds zeros (`ValueError`; `zeros="missing"` leaves them out).

**Cost:** as `gaussian`, and a logarithm a value and pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import StrOptions
from torch import Tensor

from mixwell.core.method import method
from mixwell.density.mixtures._columns import refuse_where
from mixwell.density.mixtures._normal import NormalConfig, NormalMixture
from mixwell.density.mixtures.em.gaussian import Gaussian, GaussianKernel, Level
from mixwell.density.mixtures.em.loop import Params
from mixwell.density.mixtures.em.rows import MappedRows, Piece, Rows
from mixwell.density.mixtures.gamma import positive_groups


class Lognormal(Gaussian):
    """Gaussian components of rows that are logarithms, with densities in the data's own units."""

    def kernel(self, params: Params | None, level: Level) -> LognormalKernel:
        return LognormalKernel(self, params, level)


class LognormalKernel(GaussianKernel):
    """Gaussian densities over the product of the values."""

    def joint(self, piece: Piece) -> tuple[Any, Tensor]:
        state, log_SKB = super().joint(piece)
        product_B = piece.x_BD.nansum(1)
        return state, log_SKB - product_B.to(log_SKB.dtype)


@dataclass(frozen=True, kw_only=True)
class Config(NormalConfig):
    """Options beside `GaussianMixture`'s."""

    zeros: str = "error"  # or "missing": what a zero is taken for


@method(title="Lognormal mixture", year=1957, tags={"estimator", "mixture", "missing", "online", "positive"})
class LognormalMixture(NormalMixture, config=Config):
    """Gaussian mixture of logarithms; NaN marks a missing value. Options in `Config`, others as `GaussianMixture`'s."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **NormalMixture._parameter_constraints,
        "zeros": [StrOptions({"error", "missing"})],
    }

    def _open(self, X: Any, *, reset: bool) -> Rows:
        rows = super()._open(X, reset=reset)
        return MappedRows(rows, self._seen)

    def _seen(self, x_BD: Tensor) -> Tensor:
        """Logarithms of rows; minus infinity or missing for zeros, plus infinity for what is below."""
        log_BD = x_BD.log()
        if self.zeros == "missing":
            log_BD = log_BD.masked_fill(log_BD.isneginf(), torch.nan)
        return log_BD.masked_fill(x_BD < 0, torch.inf)

    def _check_input(self, rows: Rows) -> None:
        refuse_where(rows, torch.isposinf, f"Negative values in data passed to {type(self).__name__}",
                     "expected numbers above 0")
        refuse_where(rows, torch.isneginf, f"Zeros in data passed to {type(self).__name__}",
                     "expected numbers above 0; pass zeros='missing' to leave them out")

    def _make_family(self, *arguments: Any) -> Lognormal:
        return Lognormal(*arguments)

    def _draw(self, rng: np.random.RandomState, counts_K: np.ndarray) -> np.ndarray:
        return np.exp(super()._draw(rng, counts_K))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups of positive rows."""
    x_ND = positive_groups(generator)
    return {"estimator": LognormalMixture(2, random_state=0), "X": x_ND.numpy()}
