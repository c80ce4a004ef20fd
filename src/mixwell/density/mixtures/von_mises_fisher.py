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
from mixwell.density.mixtures.bessel import bessel_ratio, log_bessel_i
from mixwell.density.mixtures.em.exponential import ExponentialFamily, Sums, share
from mixwell.density.mixtures.em.loop import Params
from mixwell.density.mixtures.em.rows import Rows


def log_normaliser(columns: int, kappa: Tensor) -> Tensor:
    """log C_D(kappa), also at kappa = 0 (one over the area of the sphere)."""
    order = columns / 2 - 1
    safe = kappa.clamp(min=1e-8)  # below it the density is flat in double precision
    return order * safe.log() - 0.5 * columns * LOG_2PI - log_bessel_i(order, safe)


def concentration(columns: int, length: Tensor, largest: float) -> Tensor:
    """kappa with I_{D/2}(kappa) / I_{D/2-1}(kappa) = length of the mean, at most `largest`."""
    r = length.double().clamp(1e-12, 1 - 1e-12)
    log_odds, log_kappa = torch.logit(r), torch.log(r * (columns - r**2) / (1 - r**2))
    for _ in range(25):
        kappa = log_kappa.exp()
        a = bessel_ratio(columns / 2 - 1, kappa).clamp(1e-300, 1 - 1e-16)
        slope = 1 - a**2 - (columns - 1) * a / kappa
        elasticity = (kappa * slope / (a * (1 - a))).clamp(1.0, 1.6)  # its range; rounding would leave it
        step = (torch.logit(a) - log_odds) / elasticity
        log_kappa = log_kappa - step
        if bool((step.abs() < 1e-12).all()):
            break
    return log_kappa.exp().clamp(max=largest)


def log_area(columns: int) -> float:
    """Log area of the unit sphere in so many dimensions."""
    return math.log(2) + 0.5 * columns * math.log(math.pi) - math.lgamma(0.5 * columns)


class VonMisesFisher(ExponentialFamily):
    """Features are the directions, and whether a row has one: a row of zeros is as likely under every component."""

    def __init__(self, columns: int, largest: float, fixed: tuple[str, ...]) -> None:
        super().__init__(fixed)
        self.columns, self.largest, self.feature_count = columns, largest, columns + 1

    def features(self, x_BD: Tensor) -> Tensor:
        x_DB = x_BD.T.double()
        x_DB = x_DB / x_DB.abs().amax(0).clamp(min=1e-300)  # so that no square under- or overflows
        length_B = x_DB.norm(dim=0)
        return torch.cat([x_DB / length_B.clamp(min=1e-300), (length_B > 0).double()[None]])

    def base(self, x_BD: Tensor) -> float:
        return -log_area(self.columns)

    def natural(self, params: Params) -> tuple[Tensor, Tensor]:
        kappa_SK = params["concentrations"]
        gain_SK1 = (log_normaliser(self.columns, kappa_SK) + log_area(self.columns))[..., None]
        return torch.cat([kappa_SK[..., None] * params["directions"], gain_SK1], -1), torch.zeros_like(kappa_SK)

    def update(self, sums: Sums, params: Params | None) -> Params:
        total_SKD, seen_SK = sums.sums_SKP[..., :-1], sums.sums_SKP[..., -1]
        length_SK = total_SKD.norm(dim=-1)
        pole = torch.zeros_like(total_SKD)
        pole[..., 0] = 1
        directions = share(total_SKD, length_SK[..., None], pole if params is None else params["directions"])
        if params is not None and "directions" in self.fixed:
            length_SK = (total_SKD * params["directions"]).sum(-1).clamp(min=0)
        mean_SK = share(length_SK, seen_SK, 0.0)
        return {"directions": directions, "concentrations": concentration(self.columns, mean_SK, self.largest)}


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
            zero = (chunk == 0).all(1)
            if bool(zero.any()):
                warnings.warn(f"row {start + int(zero.nonzero()[0, 0])} is all zeros, which has no direction; such "
                              "rows move no component.", UserWarning, stacklevel=4)
                return

    def _start_points(self, x_ND: np.ndarray) -> np.ndarray:
        features_PN = self._family(x_ND.shape[1], torch.device("cpu")).features(torch.from_numpy(np.array(x_ND)))
        return features_PN[:-1].T.numpy()

    def _n_parameters(self) -> int:
        K, D = self.mean_directions_.shape
        free = {"weights": K - 1, "directions": K * (D - 1), "concentrations": K}
        return sum(number for name, number in free.items() if name not in self._fixed())

    def _draw(self, rng: np.random.RandomState, counts_K: np.ndarray) -> np.ndarray:
        directions_KD = torch.as_tensor(self.mean_directions_).cpu().numpy().astype(float)
        kappas_K = torch.as_tensor(self.concentrations_).cpu().numpy().astype(float)
        return np.vstack([draw_directions(rng, mu_D, kappa, int(n))
                          for mu_D, kappa, n in zip(directions_KD, kappas_K, counts_K)])


def draw_directions(rng: np.random.RandomState, mean_D: np.ndarray, kappa: float, count: int) -> np.ndarray:
    """Directions around `mean_D` (count, D): the cosine by Wood's rejection (1994), the rest uniform around it."""
    D = len(mean_D)
    b = (D - 1) / (2 * kappa + math.sqrt(4 * kappa**2 + (D - 1) ** 2))
    x0 = (1 - b) / (1 + b)
    c = kappa * x0 + (D - 1) * math.log(1 - x0**2)
    cosines: list[float] = []
    while len(cosines) < count:
        beta = rng.beta((D - 1) / 2, (D - 1) / 2, 2 * count + 8)
        w = (1 - (1 + b) * beta) / (1 - (1 - b) * beta)
        accepted = kappa * w + (D - 1) * np.log(1 - x0 * w) - c >= np.log(rng.uniform(size=len(w)))
        cosines.extend(w[accepted])
    w = np.array(cosines[:count])
    across_ND = rng.normal(size=(count, D))
    across_ND -= np.outer(across_ND @ mean_D, mean_D)
    across_ND /= np.linalg.norm(across_ND, axis=1, keepdims=True)
    return w[:, None] * mean_D + np.sqrt(np.maximum(1 - w**2, 0))[:, None] * across_ND


def example(generator: torch.Generator) -> dict[str, Any]:
    """Directions around two poles in three dimensions."""
    poles_ND = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]], dtype=torch.float64).repeat_interleave(60, 0)
    x_ND = poles_ND + 0.3 * torch.randn(120, 3, generator=generator, dtype=torch.float64)
    return {"estimator": VonMisesFisherMixture(2, random_state=0), "X": x_ND.numpy()}
