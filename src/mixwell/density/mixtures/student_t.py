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
from scipy.special import gammaln
from sklearn.utils._param_validation import Interval
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import LOG_2PI, log_diagonal, log_positive
from mixwell.density.mixtures._graphs import EllipticalMixture
from mixwell.density.mixtures._normal import NormalConfig
from mixwell.density.mixtures._scores import as_array
from mixwell.density.mixtures.em.exported import Graph
from mixwell.density.mixtures.em.gaussian import Gaussian, GaussianKernel, Level
from mixwell.density.mixtures.em.kernels import MATRICES, Moments
from mixwell.density.mixtures.em.loop import Params, Tally
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
        means, by_scaled = self.means_and_covariances(scaled_SK, moments, params, level)
        total_S1 = sums.count_SK.sum(-1, keepdim=True)
        mean_logs_SK = sums.logs_SK / count_SK
        new = {"weights": sums.count_SK / total_S1, "means": means}
        new["covariances"] = self._rescaled(by_scaled, scaled_SK, count_SK)
        new["dofs"] = self._dofs(mean_logs_SK, params)
        return self.completed(new, params, dead_SK)

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
            scaled_SK = scaled_SK.sum(-1)
            count_SK = count_SK.sum(-1)
        ratio = scaled_SK / count_SK
        axes = [1] * (covariances.ndim - ratio.ndim)
        ratio = ratio.view(*ratio.shape, *axes)
        return (covariances - added) * ratio + added


class StudentTKernel(GaussianKernel):
    """Joint t densities from Gaussian ones."""

    def joint(self, piece: Piece) -> tuple[Any, Tensor]:
        state, gauss_SKB = super().joint(piece)
        assert self.params is not None
        peak_SKB, distance_SKB, columns = self._parts(state, gauss_SKB)
        dofs_SK1 = self.params["dofs"][..., None].to(gauss_SKB)
        half = 0.5 * (dofs_SK1 + columns)
        normaliser = _over_gaussian(dofs_SK1, half, columns)
        u_SKB = 2 * half / (dofs_SK1 + distance_SKB)
        log_u_SKB = u_SKB.log() + torch.digamma(half) - half.log()  # its mean, not the logarithm of the mean
        fall_SKB = half * torch.log1p(distance_SKB / dofs_SK1)
        return (state, u_SKB, log_u_SKB), peak_SKB + normaliser - fall_SKB

    def _parts(self, state: Any, gauss_SKB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weight plus Gaussian log density at the mean, squared distances from it, numbers of columns."""
        if isinstance(state, Incomplete):
            return state.peak_SKB, state.distance_SKB, state.columns_B
        peak_SK = self._peak()
        peak_SK1 = peak_SK[..., None].to(gauss_SKB)
        below_SKB = peak_SK1 - gauss_SKB
        distance_SKB = (2 * below_SKB).clamp(min=0)
        return peak_SK1, distance_SKB, distance_SKB.new_tensor(self.family.columns)

    def _peak(self) -> Tensor:
        """Log weight plus Gaussian log density (S, K) at the mean."""
        assert self.params is not None
        root, weights_SK = self.params["cholesky"], self.params["weights"]
        D = self.family.columns
        if self.family.kind in MATRICES:
            log_root = log_diagonal(root)
        elif self.family.kind == "diag":
            log_root = root.log().sum(-1)
        else:
            log_root = D * root.log()
        if self.family.kind == "tied":
            log_root = log_root[:, None].expand_as(weights_SK)
        log_peak_SK = log_positive(weights_SK) + log_root
        return log_peak_SK - 0.5 * D * LOG_2PI + self.log_scale

    def tally(self, state: Any, resp_SKB: Tensor) -> TSums:  # type: ignore[override]
        one = torch.ones_like(resp_SKB)
        features, u_SKB, log_u_SKB = state if isinstance(state, tuple) else (state, one, one)
        scaled_SKB = resp_SKB * u_SKB
        if isinstance(features, Incomplete):
            about_zero = self.level.quadratic
            moments = features.moments(scaled_SKB, resp_SKB, self.family.kind, about_zero=about_zero)
        else:
            moments = self.dense.moments(features, scaled_SKB.to(features.dtype))
        logs_SKB = resp_SKB * (log_u_SKB - u_SKB)
        count_SK = resp_SKB.sum(-1).double()
        return TSums(count_SK, *moments, logs_SKB.sum(-1).double())


def _over_gaussian(dofs: Tensor, half: Tensor, columns: Tensor) -> Tensor:
    """Log of a t density's value at its mean over that of the Gaussian with the same root."""
    gammas = torch.lgamma(half) - torch.lgamma(0.5 * dofs)
    log_scale = LOG_2PI - torch.log(math.pi * dofs)
    return gammas + 0.5 * columns * log_scale


def solve_dof(mean_logs: Tensor, smallest: float) -> Tensor:
    """Degrees of freedom that maximise the expected log-likelihood, from the mean of E[log u] - E[u].

    The condition falls with nu, so bisect.
    """
    low = torch.full_like(mean_logs, smallest).log()
    high = torch.full_like(mean_logs, LARGEST_DOF).log()
    for _ in range(50):
        middle = 0.5 * (low + high)
        half = 0.5 * middle.exp()
        slope = half.log() - torch.digamma(half) + 1 + mean_logs
        rising = slope > 0
        low = torch.where(rising, middle, low)
        high = torch.where(rising, high, middle)
    log_nu = 0.5 * (low + high)
    return log_nu.exp()


@dataclass(frozen=True, kw_only=True)
class Config(NormalConfig):
    """Options beside `GaussianMixture`'s."""

    dof_init: float = 10.0  # degrees of freedom to begin with
    min_dof: float = 0.1  # smallest degrees of freedom


@method(title="Student-t mixture", year=2000, tags={"estimator", "mixture", "missing", "online"})
class StudentTMixture(EllipticalMixture, config=Config):
    """Mixture of t distributions. `fixed` also knows "dofs"; options in `Config`, others as `GaussianMixture`'s."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **EllipticalMixture._parameter_constraints,
        "dof_init": [Interval(Real, 0.0, None, closed="neither")],
        "min_dof": [Interval(Real, 0.0, LARGEST_DOF, closed="neither")],
    }
    _fixable = ("weights", "means", "covariances", "dofs")

    def _make_family(self, *arguments: Any) -> StudentT:
        family = StudentT(*arguments)
        family.smallest_dof = self.min_dof
        family.dof_init = self.dof_init
        return family

    def _refine_start(self, family: Gaussian, params: Params) -> Params:  # type: ignore[override]
        params = super()._refine_start(family, params)
        return {"dofs": torch.full_like(params["weights"], self.dof_init), **params}

    def _extra(self, device: torch.device) -> Params:
        dofs_K = torch.as_tensor(self.dofs_)
        return {"dofs": dofs_K.to(device, torch.float64)}

    def _publish(self, family: Gaussian, params: Params, like: Any) -> None:  # type: ignore[override]
        super()._publish(family, params, like)
        self.dofs_ = self._emit(params["dofs"].to(self._dtype), like)

    def _profile_graph(self, graph: Graph, distance: str, constant_K: np.ndarray) -> str:
        D = self.n_features_in_
        dofs_K = as_array(self.dofs_).astype(float)
        half_K = 0.5 * (dofs_K + D)
        ratio = graph.scaled(distance, 1 / dofs_K, np.ones_like(dofs_K))
        log_ratio = graph.add("Log", ratio)
        gammas_K = gammaln(half_K) - gammaln(0.5 * dofs_K)
        log_scale_K = 0.5 * D * np.log(dofs_K)
        return graph.scaled(log_ratio, -half_K, constant_K + gammas_K - log_scale_K)

    def _n_parameters(self) -> int:
        own = {"dofs": len(self.dofs_)}
        return super()._n_parameters() + self._count_free(own)

    def _draw(self, rng: np.random.RandomState, counts_K: np.ndarray) -> np.ndarray:
        gauss_ND = super()._draw(rng, counts_K)
        means_ND = np.repeat(as_array(self.means_), counts_K, axis=0)
        dofs_N = np.repeat(as_array(self.dofs_), counts_K)
        u_N = rng.chisquare(dofs_N) / dofs_N
        root_N = np.sqrt(u_N)
        return means_ND + (gauss_ND - means_ND) / root_N[:, None]

    def _check_start(self, rows: Rows) -> None:
        if self.dof_init < self.min_dof:
            raise ValueError(f"dof_init={self.dof_init} lies below min_dof={self.min_dof}.")
        super()._check_start(rows)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups in the plane with a few far points."""
    centres_2D = torch.tensor([[-4.0, 0.0], [4.0, 1.0]], dtype=torch.float64)
    centres_ND = centres_2D.repeat_interleave(60, 0)
    noise_ND = torch.randn(120, 2, generator=generator, dtype=torch.float64)
    noise_ND[::15] *= 3
    x_ND = centres_ND + noise_ND
    return {"estimator": StudentTMixture(2, random_state=0), "X": x_ND.numpy()}
