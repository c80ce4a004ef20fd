"""Skew-normal mixture: groups with one long side, columns independent within each component.

**Equation:** p(x) = sum_k w_k prod_d (2 / s) phi((x_d - l) / s) Phi(a (x_d - l) / s), l, s, a = `locations_`,
`scales_`, `skews_` of component k and column d. With b = s a / sqrt(1 + a^2) and g = s^2 / (1 + a^2), x = l + b u + e,
u = |N(0, 1)|, e ~ N(0, g). E step: u given x is N(m, v) above zero, m = b (x - l) / s^2, v = g / s^2, so E[u] = m +
sqrt(v) h, E[u^2] = m^2 + v + m sqrt(v) h with h = phi(m / sqrt(v)) / Phi(m / sqrt(v)). M step: l and b are the least
squares of x on 1 and u, g is what is left.

**Shapes:** X (N, D); `weights_` (K,), `locations_`, `scales_`, `skews_` (K, D); a component's mean is l + b sqrt(2 /
pi).

**Reference:** Azzalini (1985), A Class of Distributions Which Includes the Normal Ones; Lin, Lee, Yen (2007), Finite
Mixture Modelling Using the Skew Normal Distribution.

**Differs:** starts have the moments of the clusters, skewness kept below 0.9. g is kept above `reg_covar`. Sums are
over differences to the old locations, in standardised columns.

**Fails when:** a group is nearly symmetric: the likelihood is flat in a, and EM is slow. There is no online EM: the
sums hold for the old parameters alone.

**Cost:** O(N K D) a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import log_normal
from mixwell.density.mixtures._columns import ColumnMixture
from mixwell.density.mixtures._parts import MixtureConfig
from mixwell.density.mixtures.em.columns import ColumnFamily
from mixwell.density.mixtures.em.exponential import share
from mixwell.density.mixtures.em.frame import Frame
from mixwell.density.mixtures.em.loop import Params
from mixwell.density.mixtures.em.rows import Rows

MEAN_OF_HALF = math.sqrt(2 / math.pi)  # of |N(0, 1)|
LARGEST_SKEWNESS = 0.9  # of a start; no skew-normal variable has more than 0.995


class SkewNormal(ColumnFamily):
    """Parameters are locations l, slopes b and variances g in standardised columns."""

    harmless = 0.0

    def __init__(self, frame: Frame, regularisation_D: Tensor, fixed: tuple[str, ...]) -> None:
        super().__init__(len(frame.shift_D), fixed)
        self.frame = frame
        self.floor_D = regularisation_D * frame.scale_D**2

    def _framed(self, x: Tensor) -> Tensor:
        shift_D, scale_D, _ = self.frame
        gap = x - shift_D[:, None]
        return gap * scale_D[:, None]

    def log_density(self, x: Tensor, params: Params) -> Tensor:
        gap = self._framed(x) - params["locations"]
        mean, deviation, variance = _hidden(gap, params)
        near = torch.special.log_ndtr(mean / deviation)
        log_unit_D = self.frame.scale_D.log()
        log_scale = 0.5 * variance.log() - log_unit_D[:, None]
        square = gap**2 / variance
        return log_normal(square, log_scale) + near + math.log(2)

    def statistics(self, x: Tensor, params: Params | None) -> Sequence[Tensor]:
        z = self._framed(x)
        if params is None:
            return z, z**2, z**3
        gap = z - params["locations"]
        mean, deviation, _ = _hidden(gap, params)
        standard = mean / deviation
        below = torch.special.log_ndtr(standard)
        log_ratio = log_normal(standard**2, below)
        lift = deviation * log_ratio.exp()
        first = mean + lift
        second = mean * first + deviation**2
        return gap, gap**2, first, second, gap * first

    def estimate(self, seen_SKD: Tensor, sums_MSKD: Tensor, params: Params | None) -> Params:
        means = [share(total, seen_SKD, 0.0) for total in sums_MSKD]
        if params is None:
            return self._start(*means)
        gap, gap_square, hidden, hidden_square, cross = means
        spread = (hidden_square - hidden**2).clamp(min=1e-12)
        slope = (cross - gap * hidden) / spread
        moved = gap - slope * hidden
        if "locations" in self.fixed:  # parameters that stay are put in before the others are found
            moved = torch.zeros_like(moved)
            slope = cross / hidden_square
        along = slope * (2 * cross - slope * hidden_square)
        aside = moved * (2 * gap - 2 * slope * hidden - moved)
        left = gap_square - along - aside
        variance = torch.maximum(left, self.floor_D)
        return {"locations": params["locations"] + moved, "slopes": slope, "variances": variance}

    def _start(self, mean: Tensor, square: Tensor, cube: Tensor) -> Params:
        """Parameters with these moments."""
        variance = torch.maximum(square - mean**2, self.floor_D)
        third = cube - 3 * mean * square + 2 * mean**3
        skewness = third / variance**1.5
        skewness = skewness.clamp(-LARGEST_SKEWNESS, LARGEST_SKEWNESS)
        cubed = 2 * skewness.abs() / (4 - math.pi)
        ratio = cubed ** (1 / 3)  # of the hidden part's mean over its deviation
        moved = skewness.sign() * ratio * (variance / (1 + ratio**2)).sqrt()
        slope = moved / MEAN_OF_HALF
        hidden = slope**2 - moved**2
        rest = torch.maximum(variance - hidden, self.floor_D)
        return {"locations": mean - moved, "slopes": slope, "variances": rest}


def _hidden(gap: Tensor, params: Params) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and deviation of the hidden part before it is held above zero, and the variance s^2 of the whole."""
    slope, rest = params["slopes"], params["variances"]
    variance = rest + slope**2
    mean = slope * gap / variance
    return mean, (rest / variance).sqrt(), variance


@dataclass(frozen=True, kw_only=True)
class Config(MixtureConfig):
    """Options beside those of every mixture."""

    reg_covar: float = 1e-6  # least variance beside the skewed part


@method(title="Skew-normal mixture", year=2007, tags={"estimator", "mixture", "missing"})
class SkewNormalMixture(ColumnMixture, config=Config):
    """Mixture of independent skew-normal columns; NaN marks a missing value. Options in `Config`."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **ColumnMixture._parameter_constraints,
        "reg_covar": [Interval(Real, 0.0, None, closed="neither")],
    }
    _attributes: ClassVar[dict[str, str]] = {"locations": "locations_", "scales": "scales_", "skews": "skews_"}
    _fixable: tuple[str, ...] = ("weights", "locations")
    _averages = False

    def _build_family(self, rows: Rows, weights_N: Tensor | None) -> SkewNormal:
        frame = Frame.of(rows, weights_N, "diag", self.reg_covar)
        return self._framed_family(frame, self.reg_covar)

    def _framed_family(self, frame: Frame, floor: float) -> SkewNormal:
        floor_D = torch.full_like(frame.shift_D, floor)
        return SkewNormal(frame, floor_D, self._fixed())

    def _family(self, columns: int, device: torch.device) -> SkewNormal:
        zero_D = torch.zeros(columns, dtype=torch.float64, device=device)
        return self._framed_family(Frame(zero_D, zero_D + 1, zero_D + 1), self.reg_covar)

    def _scoring(self, dtype: torch.dtype, device: torch.device) -> tuple[SkewNormal, Params]:
        family = self._family(self.n_features_in_, device)
        return family, self._warm(family)

    def _warm(self, family: SkewNormal) -> Params:  # type: ignore[override]
        frame = family.frame
        own = self._params(frame.shift_D.device)
        skew, scale = own["skews"], own["scales"] * frame.scale_D
        root = scale / (1 + skew**2).sqrt()
        location = (own["locations"] - frame.shift_D) * frame.scale_D
        return own | {"locations": location, "slopes": skew * root, "variances": root**2}

    def _publish(self, family: SkewNormal, params: Params, like: Any) -> None:  # type: ignore[override]
        frame = family.frame
        slope, rest = params["slopes"], params["variances"]
        location = params["locations"] / frame.scale_D + frame.shift_D
        whole = (rest + slope**2).sqrt()
        found = params | {"locations": location}
        found["scales"] = whole / frame.scale_D
        found["skews"] = slope / rest.sqrt()
        super()._publish(family, found, like)

    def _variates(self, rng: np.random.RandomState, **params_ND: np.ndarray) -> np.ndarray:
        skew_ND = params_ND["skews"]
        part_ND = skew_ND / np.sqrt(1 + skew_ND**2)
        hidden_ND = np.abs(rng.standard_normal(skew_ND.shape))
        noise_ND = rng.standard_normal(skew_ND.shape)
        rest_ND = np.sqrt(1 - part_ND**2)
        z_ND = part_ND * hidden_ND + rest_ND * noise_ND
        return params_ND["locations"] + params_ND["scales"] * z_ND


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups with long right sides."""
    centres_2D = torch.tensor([[-3.0, 0.0], [4.0, 2.0]], dtype=torch.float64)
    centres_ND = centres_2D.repeat_interleave(100, 0)
    hidden_ND = torch.randn(200, 2, generator=generator, dtype=torch.float64).abs()
    noise_ND = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    x_ND = centres_ND + 2 * hidden_ND + 0.5 * noise_ND
    return {"estimator": SkewNormalMixture(2, random_state=0), "X": x_ND.numpy()}
