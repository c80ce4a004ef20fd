"""Gamma mixture: positive, right-skewed columns, independent within each component.

**Equation:** p(x) = sum_k w_k prod_d x_d^(a_kd - 1) exp(-x_d / s_kd) / (Gamma(a_kd) s_kd^a_kd), of mean a s and
variance a s^2. M step, exact: log a - psi(a) = log(mean of x) - mean of log x, by bisection (the left side falls), and
s is the mean over a.

**Shapes:** X (N, D), above zero; `weights_` (K,), `shapes_` (K, D) are a, `scales_` (K, D) are s.

**Reference:** Minka (2002), Estimating a Gamma Distribution; Wiper, Insua, Ruggeri (2001), Mixtures of Gamma
Distributions with Applications.

**Differs:** shapes are kept in [1e-3, `min_spread`^-2], so that no component collapses onto one value.

**Fails when:** a column holds zeros (`ValueError`; `zeros="missing"` leaves them out).

**Cost:** O(N K D) a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import log_positive
from mixwell.density.mixtures._columns import PositiveConfig, PositiveMixture
from mixwell.density.mixtures.em.columns import ExponentialColumns, bisected
from mixwell.density.mixtures.em.loop import Params

SMALLEST_SHAPE = 1e-3


class Gamma(ExponentialColumns):
    """Statistics are the value and its logarithm."""

    statistics = 2
    min_spread = 1e-3

    def transforms(self, x_DB: Tensor) -> Sequence[Tensor]:
        return x_DB, x_DB.log()

    def coefficients(self, params: Params) -> Sequence[Tensor]:
        shape, scale = params["shapes"], params["scales"]
        below = torch.lgamma(shape) + shape * scale.log()
        return -1 / scale, shape - 1, -below

    def estimate(self, means: Sequence[Tensor], params: Params | None) -> Params:
        mean, mean_log = means
        if params is not None and "shapes" in self.fixed:
            return {"shapes": params["shapes"], "scales": mean / params["shapes"]}
        if params is not None and "scales" in self.fixed:
            target = mean_log - params["scales"].log()
            shape = self._shape(lambda shape: target - torch.digamma(shape), mean)
            return {"shapes": shape, "scales": params["scales"]}
        gap = mean.log() - mean_log
        shape = self._shape(lambda shape: shape.log() - torch.digamma(shape) - gap, mean)
        return {"shapes": shape, "scales": mean / shape}

    def _shape(self, slope: Any, like: Tensor) -> Tensor:
        """The shape at which a falling slope is zero, within the bounds."""
        low = torch.full_like(like, math.log(SMALLEST_SHAPE))
        high = torch.full_like(like, -2 * math.log(self.min_spread))
        return bisected(slope, low, high)


@method(title="Gamma mixture", year=2001, tags={"estimator", "mixture", "missing", "online", "positive"})
class GammaMixture(PositiveMixture, config=PositiveConfig):
    """Mixture of independent gamma variables; NaN marks a missing one. Options in `PositiveConfig`."""

    _attributes: ClassVar[dict[str, str]] = {"shapes": "shapes_", "scales": "scales_"}
    _fixable = ("weights", "shapes", "scales")
    _family_class = Gamma

    def _variates(self, rng: np.random.RandomState, **params_ND: np.ndarray) -> np.ndarray:
        return rng.gamma(params_ND["shapes"], params_ND["scales"])


def positive_groups(generator: torch.Generator) -> Tensor:
    """Positive rows (160, 2) of two groups: sums of squares around 2 and 20."""
    means_2D = torch.tensor([[2.0, 20.0], [20.0, 3.0]], dtype=torch.float64)
    means_ND = means_2D.repeat_interleave(80, 0)
    square_CND = torch.randn(8, 160, 2, generator=generator, dtype=torch.float64) ** 2
    return means_ND * log_positive(square_CND.mean(0)).exp()


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups of positive rows."""
    x_ND = positive_groups(generator)
    return {"estimator": GammaMixture(2, random_state=0), "X": x_ND.numpy()}
