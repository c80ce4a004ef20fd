"""Inverse Gaussian mixture: first passage times, positive and skewed, columns independent within each component.

**Equation:** p(x) = sum_k w_k prod_d sqrt(l_kd / (2 pi x_d^3)) exp(-l_kd (x_d - m_kd)^2 / (2 m_kd^2 x_d)), of mean m
and variance m^3 / l. M step, exact: m is the weighted mean, 1 / l = mean of 1 / x - 2 / m + mean of x / m^2.

**Shapes:** X (N, D), above zero; `weights_` (K,), `means_` (K, D) are m, `shapes_` (K, D) are l.

**Reference:** Tweedie (1957), Statistical Properties of Inverse Gaussian Distributions; Chhikara, Folks (1989), The
Inverse Gaussian Distribution.

**Differs:** shapes are kept below m / `min_spread`^2, so that no component collapses onto one value.

**Fails when:** a column holds zeros (`ValueError`; `zeros="missing"` leaves them out), or values close to zero, which
have a large say.

**Cost:** O(N K D) a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import LOG_2PI
from mixwell.density.mixtures._columns import PositiveConfig, PositiveMixture
from mixwell.density.mixtures.em.columns import ExponentialColumns
from mixwell.density.mixtures.em.loop import Params, held
from mixwell.density.mixtures.gamma import positive_groups


class InverseGaussian(ExponentialColumns):
    """Statistics are the value and its inverse."""

    statistics = 2
    min_spread = 1e-3

    def transforms(self, x_DB: Tensor) -> Sequence[Tensor]:
        return x_DB, 1 / x_DB

    def log_base(self, x_DB: Tensor) -> Tensor:
        return -1.5 * x_DB.log() - 0.5 * LOG_2PI

    def coefficients(self, params: Params) -> Sequence[Tensor]:
        mean, shape = params["means"], params["shapes"]
        ratio = shape / mean
        constant = 0.5 * shape.log() + ratio
        return -0.5 * ratio / mean, -0.5 * shape, constant

    def estimate(self, means: Sequence[Tensor], params: Params | None) -> Params:
        mean, mean_inverse = means
        centre = held(self.fixed, "means", mean, params)
        distance = mean_inverse - 2 / centre + mean / centre**2
        least = self.min_spread**2 / centre
        return {"means": centre, "shapes": 1 / torch.maximum(distance, least)}


@method(title="Inverse Gaussian mixture", year=1957, tags={"estimator", "mixture", "missing", "online", "positive"})
class InverseGaussianMixture(PositiveMixture, config=PositiveConfig):
    """Mixture of independent inverse Gaussian variables; NaN marks a missing one. Options in `PositiveConfig`."""

    _attributes: ClassVar[dict[str, str]] = {"means": "means_", "shapes": "shapes_"}
    _fixable = ("weights", "means", "shapes")
    _partly = ("weights", "means", "shapes")
    _family_class = InverseGaussian

    def _variates(self, rng: np.random.RandomState, **params_ND: np.ndarray) -> np.ndarray:
        return rng.wald(params_ND["means"], params_ND["shapes"])


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups of positive rows."""
    x_ND = positive_groups(generator)
    return {"estimator": InverseGaussianMixture(2, random_state=0), "X": x_ND.numpy()}
