"""Student-t mixture: Gaussian-like groups with heavy tails, so that outliers do not pull means and covariances.

**Equation:** p(x) = sum_k w_k t(x; mu_k, S_k, nu_k), t a Gaussian whose precision is scaled by u ~ Gamma(nu/2, nu/2).
E step: r_nk as always, u_nk = (nu_k + D) / (nu_k + delta_nk). M step: mu_k = sum r u x / sum r u; S_k = sum r u (x -
mu)(x - mu)^T / sum r + reg_covar; nu_k solves log(nu/2) - psi(nu/2) + 1 + mean_k(log u - u + psi((nu_old + D)/2) -
log((nu_old + D)/2)) = 0. Where values are missing, D counts the observed ones, x stands for its mean given them, and
S_k gains sum r Cov[x | observed] (the Gaussian one).

**Shapes:** as `GaussianMixture`; `dofs_` (K,) are the degrees of freedom nu, `covariances_` the scale matrices S.

**Reference:** Peel, McLachlan (2000), Robust Mixture Modelling using the t Distribution.

**Differs:** nu is kept in [`min_dof`, 1000] (bisection on the log scale); with `fixed="dofs"` it stays at `dof_init`.
Missing values are not in the paper.

**Fails when:** a component has no more than D + 1 distinct points and `reg_covar` is 0 (`ValueError`).

**Cost:** as `GaussianMixture`, and one more product of the size of the responsibilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._covariances import precision_cholesky
from mixwell.density._gaussian import LOG_2PI, log_diagonal, log_positive
from mixwell.density.mixtures._normal import NormalConfig, NormalMixture
from mixwell.density.mixtures.em.gaussian import Gaussian, GaussianKernel, Level
from mixwell.density.mixtures.em.kernels import MATRICES, Moments
from mixwell.density.mixtures.em.loop import Params, Tally, fixed_values
from mixwell.density.mixtures.em.missing import Incomplete
from mixwell.density.mixtures.em.rows import Piece, Rows

LARGEST_DOF = 1000.0  # beyond it a t distribution is a Gaussian to three digits


class TSums(NamedTuple):
    """Weighted sums over rows."""

    count_SK: Tensor  # sum r
    scaled_SK: Tensor  # sum r u
    first_SKD: Tensor  # sum r u x
    second: Tensor  # sum r u x x^T
    logs_SK: Tensor  # sum r (E[log u] - u)


class StudentT(Gaussian):
    """Gaussian kernels with rows weighted by the expected precision scales."""

    smallest_dof = 0.1
    dof_init = 10.0

    def kernel(self, params: Params | None, level: Level) -> StudentTKernel:
        return StudentTKernel(self, params, level)

    def maximise(self, tally: Tally, params: Params | None, level: Level) -> Params:
        sums: TSums = tally.statistics
        dead_SK = self.dead(tally)
        count_SK = torch.where(dead_SK, 1.0, sums.count_SK)
        scaled_SK = torch.where(dead_SK, 1.0, sums.scaled_SK)
        moments = Moments(scaled_SK, sums.first_SKD, sums.second)
        means, covariances = self.means_and_covariances(scaled_SK, moments, params, level)
        weights = sums.count_SK / sums.count_SK.sum(-1, keepdim=True)
        new = {"weights": weights, "means": means, "covariances": self._rescaled(covariances, scaled_SK, count_SK),
               "dofs": self._dofs(sums.logs_SK / count_SK, params)}
        new = self.keep_dead(new, params, dead_SK)
        new |= fixed_values(self.fixed, params)
        return new | {"cholesky": precision_cholesky(self.kind, new["covariances"])}

    def _dofs(self, mean_logs_SK: Tensor, params: Params | None) -> Tensor:
        """Degrees of freedom (S, K); those to begin with where there are no parameters yet."""
        if params is None:
            return torch.full_like(mean_logs_SK, self.dof_init)
        return solve_dof(mean_logs_SK, self.smallest_dof)

    def _rescaled(self, covariances: Tensor, scaled_SK: Tensor, count_SK: Tensor) -> Tensor:
        """Sums divided by the count instead of the scaled count; the regularisation stays as it is."""
        added: Tensor = self.regularisation_D
        if self.kind == "spherical":
            added = added.mean()
        elif self.kind in MATRICES:
            added = torch.diag(added)
        if self.kind == "tied":
            scaled_SK, count_SK = scaled_SK.sum(-1), count_SK.sum(-1)
        ratio = scaled_SK / count_SK
        ones = [1] * (covariances.ndim - ratio.ndim)
        return (covariances - added) * ratio.view(*ratio.shape, *ones) + added


class StudentTKernel(GaussianKernel):
    """Joint t densities from Gaussian ones."""

    def joint(self, piece: Piece) -> tuple[Any, Tensor]:
        state, gauss_SKB = super().joint(piece)
        assert self.params is not None
        if isinstance(state, Incomplete):
            peak_SKB, distance_SKB, columns = state.peak_SKB, state.distance_SKB, state.columns_B
        else:  # log weight and Gaussian log density at the mean
            peak_SKB = self._peak()[..., None].to(gauss_SKB)
            distance_SKB = (2 * (peak_SKB - gauss_SKB)).clamp(min=0)
            columns = distance_SKB.new_tensor(len(self.family.frame.shift_D))
        dofs_SK1 = self.params["dofs"][..., None].to(gauss_SKB)
        half = 0.5 * (dofs_SK1 + columns)
        normaliser = (torch.lgamma(half) - torch.lgamma(0.5 * dofs_SK1)
                      + 0.5 * columns * (LOG_2PI - torch.log(math.pi * dofs_SK1)))
        u_SKB = 2 * half / (dofs_SK1 + distance_SKB)
        log_u_SKB = u_SKB.log() + torch.digamma(half) - half.log()  # its mean, not the logarithm of the mean
        return ((state, u_SKB, log_u_SKB),
                peak_SKB + normaliser - half * torch.log1p(distance_SKB / dofs_SK1))

    def _peak(self) -> Tensor:
        assert self.params is not None
        kind, root, S_K = self.family.kind, self.params["cholesky"], self.params["weights"].shape
        D = len(self.family.frame.shift_D)
        if kind in ("full", "tied"):
            log_det = log_diagonal(root)
        else:
            log_det = root.log().sum(-1) if kind == "diag" else D * root.log()
        log_det = log_det[:, None].expand(S_K) if kind == "tied" else log_det
        return log_positive(self.params["weights"]) + log_det - 0.5 * D * LOG_2PI + self.log_scale

    def tally(self, state: Any, resp_SKB: Tensor) -> TSums:  # type: ignore[override]
        one = torch.ones_like(resp_SKB)
        features, u_SKB, log_u_SKB = state if isinstance(state, tuple) else (state, one, one)
        if isinstance(features, Incomplete):
            scaled, first, second = features.moments(resp_SKB * u_SKB, resp_SKB, self.family.kind,
                                                     about_zero=self.level.quadratic)
        else:
            scaled, first, second = self.dense.moments(features, (resp_SKB * u_SKB).to(features.dtype))
        logs = (resp_SKB * (log_u_SKB - u_SKB)).sum(-1)
        return TSums(resp_SKB.sum(-1).double(), scaled, first, second, logs.double())


def solve_dof(mean_logs: Tensor, smallest: float) -> Tensor:
    """Degrees of freedom that maximise the expected log-likelihood, from the mean of E[log u] - E[u].

    The condition falls with nu, so bisect.
    """
    low, high = torch.full_like(mean_logs, smallest).log(), torch.full_like(mean_logs, LARGEST_DOF).log()
    for _ in range(50):
        middle = 0.5 * (low + high)
        nu = middle.exp()
        rising = (0.5 * nu).log() - torch.digamma(0.5 * nu) + 1 + mean_logs > 0
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    return (0.5 * (low + high)).exp()


@dataclass(frozen=True, kw_only=True)
class Config(NormalConfig):
    """Options beside `GaussianMixture`'s."""

    dof_init: float = 10.0  # degrees of freedom to begin with
    min_dof: float = 0.1  # smallest degrees of freedom


@method(title="Student-t mixture", year=2000, tags={"estimator", "mixture", "missing", "online"})
class StudentTMixture(NormalMixture, config=Config):
    """Mixture of t distributions. `fixed` also knows "dofs"; options in `Config`, others as `GaussianMixture`'s."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **NormalMixture._parameter_constraints,
        "dof_init": [Interval(Real, 0.0, None, closed="neither")],
        "min_dof": [Interval(Real, 0.0, LARGEST_DOF, closed="neither")],
    }
    _fixable = ("weights", "means", "covariances", "dofs")

    def _make_family(self, *arguments: Any) -> StudentT:
        family = StudentT(*arguments)
        family.smallest_dof, family.dof_init = self.min_dof, self.dof_init
        return family

    def _refine_start(self, family: Gaussian, params: Params) -> Params:  # type: ignore[override]
        params = super()._refine_start(family, params)
        return {"dofs": torch.full_like(params["weights"], self.dof_init), **params}

    def _extra(self, device: torch.device) -> Params:
        return {"dofs": torch.as_tensor(self.dofs_).to(device, torch.float64)}

    def _publish(self, family: Gaussian, params: Params, like: Any) -> None:  # type: ignore[override]
        super()._publish(family, params, like)
        self.dofs_ = self._emit(params["dofs"].to(self._dtype), like)

    def _n_parameters(self) -> int:
        return super()._n_parameters() + (len(self.dofs_) if "dofs" not in self._fixed() else 0)

    def _draw(self, rng: np.random.RandomState, counts_K: np.ndarray) -> np.ndarray:
        x_ND = super()._draw(rng, counts_K)
        means_KD, dofs_K = (torch.as_tensor(a).cpu().numpy() for a in (self.means_, self.dofs_))
        means_ND, dofs_N = np.repeat(means_KD, counts_K, axis=0), np.repeat(dofs_K, counts_K)
        return means_ND + (x_ND - means_ND) / np.sqrt(rng.chisquare(dofs_N) / dofs_N)[:, None]

    def _check_start(self, rows: Rows) -> None:
        if self.dof_init < self.min_dof:
            raise ValueError(f"dof_init={self.dof_init} lies below min_dof={self.min_dof}.")
        super()._check_start(rows)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups in the plane with a few far points."""
    centres_ND = torch.tensor([[-4.0, 0.0], [4.0, 1.0]], dtype=torch.float64).repeat_interleave(60, 0)
    noise_ND = torch.randn(120, 2, generator=generator, dtype=torch.float64)
    noise_ND[::15] *= 3
    return {"estimator": StudentTMixture(2, random_state=0), "X": (centres_ND + noise_ND).numpy()}
