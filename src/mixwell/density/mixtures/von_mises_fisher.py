"""Von Mises-Fisher mixture: directions, grouped around mean directions with their own concentrations.

**Equation:** p(x) = sum_k w_k C_D(kappa_k) exp(kappa_k mu_k . x) on the unit sphere, C_D(kappa) = kappa^(D/2-1) /
((2 pi)^(D/2) I_{D/2-1}(kappa)). M step: mu_k is the direction of the weighted mean R_k, and kappa_k solves
I_{D/2}(kappa) / I_{D/2-1}(kappa) = |R_k|, by Newton on log kappa and log odds from kappa = r (D - r^2) / (1 - r^2).

**Shapes:** X (N, D), rows are directions and are scaled to unit length; `weights_` (K,), `mean_directions_` (K, D),
`concentrations_` (K,). Densities are with respect to the area of the sphere.

**Reference:** Banerjee, Dhillon, Ghosh, Sra (2005), Clustering on the Unit Hypersphere using von Mises-Fisher
Distributions; Plesner, Sorensen, Hauberg (2024), arXiv:2409.08729 (log Bessel functions).

**Differs:** log Bessel functions by Olver's uniform expansion from order 80 and the downward recurrence below it, in
float64, instead of the paper's power series and region selector; concentrations are at most `max_concentration`. A
row of zeros has no direction: it gets the uniform density under every component, and moves none.

**Fails when:** D = 1 (`ValueError`); a value is missing; directions and their opposites mean the same (axial data).

**Cost:** O(N K D) a step, and a few Bessel evaluations of K numbers, of up to 80 recurrence steps each.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import LOG_2PI
from mixwell.density.mixtures._parts import MixtureConfig
from mixwell.density.mixtures._plain import PlainMixture
from mixwell.density.mixtures._scores import as_array
from mixwell.density.mixtures.bessel import bessel_ratio, log_bessel_i
from mixwell.density.mixtures.em.exponential import ExponentialFamily, Sums, share
from mixwell.density.mixtures.em.loop import Params
from mixwell.density.mixtures.em.rows import Rows


def log_normaliser(columns: int, kappa: Tensor) -> Tensor:
    """log C_D(kappa), also at kappa = 0 (one over the area of the sphere)."""
    order = columns / 2 - 1
    safe = kappa.clamp(min=1e-8)  # below it the density is flat in double precision
    flat = 0.5 * columns * LOG_2PI
    return order * safe.log() - flat - log_bessel_i(order, safe)


def concentration(columns: int, length: Tensor, largest: float) -> Tensor:
    """kappa with I_{D/2}(kappa) / I_{D/2-1}(kappa) = length of the mean, at most `largest`."""
    r = length.double().clamp(1e-12, 1 - 1e-12)
    log_odds = torch.logit(r)
    first = r * (columns - r**2) / (1 - r**2)
    log_kappa = torch.log(first)
    for _ in range(25):
        step = _newton_step(columns, log_kappa.exp(), log_odds)
        log_kappa = log_kappa - step
        settled = step.abs() < 1e-12
        if bool(settled.all()):
            break
    return log_kappa.exp().clamp(max=largest)


def _newton_step(columns: int, kappa: Tensor, log_odds: Tensor) -> Tensor:
    """What log kappa is too large by, to first order, for a ratio of Bessel functions with these log odds."""
    ratio = bessel_ratio(columns / 2 - 1, kappa)
    a = ratio.clamp(1e-300, 1 - 1e-16)
    slope = 1 - a**2 - (columns - 1) * a / kappa
    elasticity = kappa * slope / (a * (1 - a))
    bounded = elasticity.clamp(1.0, 1.6)  # its range; rounding would leave it
    return (torch.logit(a) - log_odds) / bounded


def log_area(columns: int) -> float:
    """Log area of the unit sphere in so many dimensions."""
    half = 0.5 * columns
    power = half * math.log(math.pi)
    return math.log(2) + power - math.lgamma(half)


class VonMisesFisher(ExponentialFamily):
    """Features are the directions, and whether a row has one: a row of zeros is as likely under every component."""

    def __init__(self, columns: int, largest: float, fixed: tuple[str, ...]) -> None:
        super().__init__(fixed)
        self.columns, self.largest, self.feature_count = columns, largest, columns + 1

    def features(self, x_BD: Tensor) -> Tensor:
        x_DB = x_BD.T.double()
        largest_B = x_DB.abs().amax(0)
        x_DB = x_DB / largest_B.clamp(min=1e-300)  # so that no square under- or overflows
        length_B = x_DB.norm(dim=0)
        direction_DB = x_DB / length_B.clamp(min=1e-300)
        has_one_B = (length_B > 0).double()
        return torch.cat([direction_DB, has_one_B[None]])

    def base(self, x_BD: Tensor) -> float:
        return -log_area(self.columns)

    def natural(self, params: Params) -> tuple[Tensor, Tensor]:
        kappa_SK = params["concentrations"]
        over_uniform_SK = log_normaliser(self.columns, kappa_SK) + log_area(self.columns)
        slope_SKD = kappa_SK[..., None] * params["directions"]
        natural_SKP = torch.cat([slope_SKD, over_uniform_SK[..., None]], -1)
        return natural_SKP, torch.zeros_like(kappa_SK)

    def update(self, sums: Sums, params: Params | None) -> Params:
        total_SKD, seen_SK = sums.sums_SKP[..., :-1], sums.sums_SKP[..., -1]
        length_SK = total_SKD.norm(dim=-1)
        otherwise = _poles(total_SKD) if params is None else params["directions"]
        directions = share(total_SKD, length_SK[..., None], otherwise)
        if params is not None and "directions" in self.fixed:
            along_SKD = total_SKD * params["directions"]
            length_SK = along_SKD.sum(-1).clamp(min=0)
        mean_SK = share(length_SK, seen_SK, 0.0)
        kappa_SK = concentration(self.columns, mean_SK, self.largest)
        return {"directions": directions, "concentrations": kappa_SK}


def _poles(like_SKD: Tensor) -> Tensor:
    """Any direction, for a component that has not seen one."""
    pole_SKD = torch.zeros_like(like_SKD)
    pole_SKD[..., 0] = 1
    return pole_SKD


@dataclass(frozen=True, kw_only=True)
class Config(MixtureConfig):
    """Options beside those of every mixture."""

    max_concentration: float = 1e8  # bound of kappa


@method(title="Von Mises-Fisher mixture", paper="Accurate Computation of the Logarithm of Modified Bessel Functions on "
        "GPUs", year=2005, tags={"estimator", "mixture", "online", "directions"})
class VonMisesFisherMixture(PlainMixture, config=Config):
    """Mixture of directions; options in `Config`, others as `GaussianMixture`'s."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **PlainMixture._parameter_constraints,
        "max_concentration": [Interval(Real, 0.0, None, closed="neither")],
    }
    _attributes: ClassVar[dict[str, str]] = {"directions": "mean_directions_", "concentrations": "concentrations_"}
    _fixable = ("weights", "directions", "concentrations")

    def _family(self, columns: int, device: torch.device) -> VonMisesFisher:
        return VonMisesFisher(columns, self.max_concentration, self._fixed())

    def _check_input(self, rows: Rows) -> None:
        if rows.n_columns < 2:
            raise ValueError("VonMisesFisherMixture got 1 feature(s) (n_features = 1); directions need at least 2.")
        for start, chunk in rows.chunks():
            zero_B = (chunk == 0).all(1)
            if bool(zero_B.any()):
                row = start + int(zero_B.nonzero()[0, 0])
                warnings.warn(f"row {row} is all zeros, which has no direction; such "
                              "rows move no component.", UserWarning, stacklevel=4)
                return

    def _start_points(self, x_ND: np.ndarray) -> np.ndarray:
        family = self._family(x_ND.shape[1], torch.device("cpu"))
        rows_ND = torch.from_numpy(np.array(x_ND))
        features_PN = family.features(rows_ND)
        directions_DN = features_PN[:-1]
        return directions_DN.T.numpy()

    def _n_parameters(self) -> int:
        K, D = self.mean_directions_.shape
        free = {"weights": K - 1, "directions": K * (D - 1), "concentrations": K}
        return self._count_free(free)

    def _draw(self, rng: np.random.RandomState, counts_K: np.ndarray) -> np.ndarray:
        directions_KD = as_array(self.mean_directions_).astype(float)
        kappas_K = as_array(self.concentrations_).astype(float)
        each = zip(directions_KD, kappas_K, counts_K)
        parts = [draw_directions(rng, mu_D, kappa, int(n)) for mu_D, kappa, n in each]
        return np.vstack(parts)


def draw_directions(rng: np.random.RandomState, mean_D: np.ndarray, kappa: float, count: int) -> np.ndarray:
    """Directions around `mean_D` (count, D): the cosine by Wood's rejection (1994), the rest uniform around it."""
    D = len(mean_D)
    cosine_N1 = _draw_cosines(rng, D, kappa, count)[:, None]
    across_ND = rng.normal(size=(count, D))
    across_ND -= np.outer(across_ND @ mean_D, mean_D)
    across_ND /= np.linalg.norm(across_ND, axis=1, keepdims=True)
    square_N1 = np.maximum(1 - cosine_N1**2, 0)
    return cosine_N1 * mean_D + np.sqrt(square_N1) * across_ND


def _draw_cosines(rng: np.random.RandomState, D: int, kappa: float, count: int) -> np.ndarray:
    """Cosines (count,) of the angle to the mean direction."""
    free = D - 1
    root = math.sqrt(4 * kappa**2 + free**2)
    b = free / (2 * kappa + root)
    x0 = (1 - b) / (1 + b)
    c = kappa * x0 + free * math.log(1 - x0**2)
    cosines: list[float] = []
    while len(cosines) < count:
        beta = rng.beta(free / 2, free / 2, 2 * count + 8)
        w = (1 - (1 + b) * beta) / (1 - (1 - b) * beta)
        log_ratio = kappa * w + free * np.log(1 - x0 * w) - c
        accepted = log_ratio >= np.log(rng.uniform(size=len(w)))
        cosines.extend(w[accepted])
    return np.array(cosines[:count])


def example(generator: torch.Generator) -> dict[str, Any]:
    """Directions around two poles in three dimensions."""
    poles_2D = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]], dtype=torch.float64)
    poles_ND = poles_2D.repeat_interleave(60, 0)
    noise_ND = torch.randn(120, 3, generator=generator, dtype=torch.float64)
    x_ND = poles_ND + 0.3 * noise_ND
    estimator = VonMisesFisherMixture(2, random_state=0)
    return {"estimator": estimator, "X": x_ND.numpy()}
