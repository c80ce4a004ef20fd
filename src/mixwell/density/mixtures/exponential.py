"""Exponential mixture: waiting times without memory, columns independent within each component.

**Equation:** p(x) = sum_k w_k prod_d exp(-x_d / s_kd) / s_kd. M step: s_kd is the weighted mean of column d over the
rows where it is observed.

**Shapes:** X (N, D), not negative; `weights_` (K,), `scales_` (K, D), the means.

**Reference:** Jewell (1982), Mixtures of Exponential Distributions.

**Differs:** scales are kept above 1e-300.

**Fails when:** columns do not fall off from zero at once (`gamma`, `weibull`).

**Cost:** O(N K D) a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import TINY
from mixwell.density.mixtures._graphs import LinearMixture
from mixwell.density.mixtures._parts import MixtureConfig
from mixwell.density.mixtures.em.columns import ExponentialColumns
from mixwell.density.mixtures.em.loop import Params


class Exponential(ExponentialColumns):
    """The statistic is the value itself."""

    statistics = 1

    def transforms(self, x_DB: Tensor) -> Sequence[Tensor]:
        return (x_DB,)

    def coefficients(self, params: Params) -> Sequence[Tensor]:
        scale = params["scales"]
        return -1 / scale, -scale.log()

    def estimate(self, means: Sequence[Tensor], params: Params | None) -> Params:
        (mean,) = means
        return {"scales": mean.clamp(min=TINY)}


@method(title="Exponential mixture", year=1982, tags={"estimator", "mixture", "missing", "online", "positive"})
class ExponentialMixture(LinearMixture, config=MixtureConfig):
    """Mixture of independent exponential variables; NaN marks a missing one. Parameters as `GaussianMixture`'s."""

    _attributes: ClassVar[dict[str, str]] = {"scales": "scales_"}
    _fixable = ("weights", "scales")
    _partly = ("weights", "scales")
    _family_class = Exponential
    _support = "numbers of 0 or more"

    def _variates(self, rng: np.random.RandomState, **params_ND: np.ndarray) -> np.ndarray:
        return rng.exponential(params_ND["scales"])


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two columns of short and long waits."""
    scales_2D = torch.tensor([[1.0, 60.0], [40.0, 2.0]], dtype=torch.float64)
    scales_ND = scales_2D.repeat_interleave(100, 0)
    share_ND = torch.rand(200, 2, generator=generator, dtype=torch.float64)
    x_ND = -scales_ND * torch.log1p(-share_ND)
    return {"estimator": ExponentialMixture(2, random_state=0), "X": x_ND.numpy()}
