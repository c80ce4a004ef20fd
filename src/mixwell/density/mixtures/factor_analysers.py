"""Mixture of factor analysers: Gaussian groups whose covariances are low rank plus a diagonal.

**Equation:** p(x) = sum_k w_k N(x; mu_k, L_k L_k^T + Psi_k), L_k (D, Q), Psi_k diagonal. M step, from the r-weighted
mean mu_k and covariance C_k, `reg_covar` added to its diagonal: B = L^T Sigma^-1, E = I - B L + B C B^T; L_new = C B^T
E^-1; Psi_new = diag(C - L_new B C).

**Shapes:** X (N, D); `weights_` (K,), `means_` (K, D), `loadings_` (K, D, Q), `noise_variances_` (K, D), `covariances_`
(K, D, D).

**Reference:** Ghahramani, Hinton (1997), The EM Algorithm for Mixtures of Factor Analyzers.

**Differs:** the mean moves first and C_k is taken about it, with the same responsibilities, where the paper solves for
mean and loadings together: a generalised EM step, so that missing values and the Gaussian kernels serve as they are.
Loadings start from the eigenvectors of C_k. `tied_noise` shares one Psi, the weighted mean of all Psi_new.

**Fails when:** Q is near D: loadings are then not determined (they are only up to a rotation in any case).

**Cost:** as a full `GaussianMixture`, O(N K D^2 + K D^3) a step; K (D Q + 2 D) parameters instead of K D^2 / 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._covariances import precision_cholesky
from mixwell.density.mixtures._normal import NormalMixture
from mixwell.density.mixtures._parts import MixtureConfig
from mixwell.density.mixtures.em.gaussian import Gaussian, Level
from mixwell.density.mixtures.em.loop import Params, Tally
from mixwell.density.mixtures.em.rows import Rows


class FactorAnalysers(Gaussian):
    """Full Gaussian kernels; covariances projected by one step of factor analysis."""

    n_factors = 1
    tied_noise = False

    def maximise(self, tally: Tally, params: Params | None, level: Level) -> Params:
        new = super().maximise(tally, params, level)
        sample_SKDD = new["covariances"]
        if params is None or "loadings" not in params:
            loadings, noise = principal_factors(sample_SKDD, self.n_factors)
        else:
            loadings, noise = factor_step(sample_SKDD, params["loadings"], params["noise"])
        if self.tied_noise:
            weighted = new["weights"][..., None] * noise
            shared = weighted.sum(1, keepdim=True)
            noise = shared.expand_as(noise)
        least = 1e-12 * _variances(sample_SKDD).mean()
        noise = noise.clamp(min=least)
        covariances = loadings @ loadings.mT + torch.diag_embed(noise)
        root = precision_cholesky("full", covariances)
        return {**new, "loadings": loadings, "noise": noise, "covariances": covariances, "cholesky": root}


def _variances(covariances: Tensor) -> Tensor:
    """Diagonals (..., D)."""
    return covariances.diagonal(dim1=-2, dim2=-1)


def principal_factors(covariances: Tensor, factors: int) -> tuple[Tensor, Tensor]:
    """Loadings (..., D, Q) and noise variances (..., D) from the largest eigenvectors."""
    values, vectors = torch.linalg.eigh(covariances)
    left = covariances.shape[-1] - factors
    small, large = values[..., :left], values[..., left:]
    if left > 0:
        rest = small.mean(-1, keepdim=True).clamp(min=0)
    else:
        rest = torch.zeros_like(values[..., :1])
    above = (large - rest).clamp(min=0)
    loadings = vectors[..., left:] * above.sqrt()[..., None, :]
    variances = _variances(covariances)
    noise = variances - loadings.square().sum(-1)
    return loadings, noise.clamp(min=1e-3 * variances)


def factor_step(covariances: Tensor, loadings: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One EM step of factor analysis on a covariance: new loadings and noise variances."""
    scaled = loadings / noise[..., None]
    eye = torch.eye(loadings.shape[-1], dtype=loadings.dtype, device=loadings.device)
    precision = eye + loadings.mT @ scaled
    gain = torch.linalg.solve(precision, scaled.mT)  # L^T Sigma^-1, by Woodbury
    cross = covariances @ gain.mT
    left = eye - gain @ loadings
    second = left + gain @ cross
    new = torch.linalg.solve(second, cross.mT).mT
    explained = (new * cross).sum(-1)
    unexplained = _variances(covariances) - explained
    return new, unexplained.clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class Config(MixtureConfig):
    """Options beside those of every mixture."""

    n_factors: int = 1  # Q, the rank of loadings
    tied_noise: bool = False  # one Psi for all components
    reg_covar: float | str = 1e-6  # added to variances; "scale": 1e-6 of each column's


@method(title="Mixture of factor analysers", year=1997, tags={"estimator", "mixture", "missing", "online"})
class MixtureOfFactorAnalysers(NormalMixture, config=Config):
    """Gaussian mixture with low-rank-plus-diagonal covariances; options in `Config`, others as `GaussianMixture`'s.

    NaN marks a missing value.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **{name: rule for name, rule in NormalMixture._parameter_constraints.items()
           if name not in ("covariance_type", "weights_init", "means_init", "precisions_init")},
        "n_factors": [Interval(Integral, 1, None, closed="left")],
        "tied_noise": ["boolean"],
    }
    _fixable = ("weights", "means")
    covariance_type = "full"
    weights_init = means_init = precisions_init = None

    def _check_start(self, rows: Rows) -> None:
        if self.n_factors > rows.n_columns:
            raise ValueError(f"n_factors={self.n_factors} is more than the {rows.n_columns} feature(s) of X "
                             f"(n_features = {rows.n_columns}); expected at most that.")

    def _make_family(self, *arguments: Any) -> FactorAnalysers:
        family = FactorAnalysers(*arguments)
        family.n_factors = self.n_factors
        family.tied_noise = self.tied_noise
        return family

    def _warm(self, family: Gaussian) -> Params:  # type: ignore[override]
        params = super()._warm(family)
        scale_D = family.frame.scale_D
        loadings = torch.as_tensor(self.loadings_).to(scale_D)
        noise = torch.as_tensor(self.noise_variances_).to(scale_D)
        params["loadings"] = loadings * scale_D[:, None]
        params["noise"] = noise * scale_D**2
        return params

    def _publish(self, family: Gaussian, params: Params, like: Any) -> None:  # type: ignore[override]
        super()._publish(family, params, like)
        back_D = 1 / family.frame.scale_D
        loadings = params["loadings"] * back_D[:, None]
        noise = params["noise"] * back_D**2
        self.loadings_ = self._emit(loadings.to(self._dtype), like)
        self.noise_variances_ = self._emit(noise.to(self._dtype), like)

    def _n_parameters(self) -> int:
        K, D, Q = self.loadings_.shape
        rotations = Q * (Q - 1) // 2  # which loadings are free of
        loadings = K * (D * Q - rotations)
        noise = D if self.tied_noise else K * D
        free = self._count_free({"weights": K - 1, "means": K * D})
        return free + noise + loadings


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups in five dimensions, each along one direction."""
    loadings = [[2.0, 1.0, 0.0, -1.0, 0.5], [0.0, -1.0, 2.0, 1.0, 1.0]]
    loadings_2D = torch.tensor(loadings, dtype=torch.float64)
    labels_N = torch.arange(2).repeat_interleave(80)
    scores_N1 = torch.randn(160, 1, generator=generator, dtype=torch.float64)
    noise_ND = 0.4 * torch.randn(160, 5, generator=generator, dtype=torch.float64)
    along_ND = scores_N1 * loadings_2D[labels_N]
    x_ND = 5.0 * labels_N[:, None] + along_ND + noise_ND
    estimator = MixtureOfFactorAnalysers(2, random_state=0)
    return {"estimator": estimator, "X": x_ND.numpy()}
