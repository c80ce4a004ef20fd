"""Modes of a Gaussian mixture: every local maximum of the density.

**Equation:** fixed point x <- (sum_k r_k(x) S_k^-1)^-1 sum_k r_k(x) S_k^-1 m_k, an EM step for x that never lowers the
density, from every mean; then Newton steps where the Hessian is negative definite.

**Shapes:** returns modes (M, D) and their log densities (M,), highest first.

**Reference:** Carreira-Perpinan (2000), Mode-Finding for Mixtures of Gaussian Distributions, sections 4 and 5.

**Differs:** the fixed point is followed by Newton steps; ends are one mode where they are close in the mixture's own
standard deviations, and no mode where the log density does not curve down on every side.

**Fails when:** a mode lies where no mean's path ends (possible for unequal covariances in two or more dimensions, where
a mixture may have more modes than components); pass further `starts_ND` then.

**Cost:** O(starts K D^3) a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import outer
from mixwell.density.values.gaussian_mixture import GaussianMixtureDensity


@dataclass(frozen=True, kw_only=True)
class Config:
    """How modes are searched; `ValueError` for a value out of range."""

    max_iter: int = 500  # fixed-point steps
    tol: float = 1e-9  # step length, in standard deviations of the mixture, below which a path has ended
    merge: float = 1e-3  # ends closer than this, in the same unit, are one mode

    def __post_init__(self) -> None:
        smallest = min(self.max_iter, self.tol, self.merge)
        if self.max_iter < 1 or smallest <= 0:
            raise ValueError(f"max_iter={self.max_iter}, tol={self.tol}, merge={self.merge}; all must be positive.")


@method(title="Modes of a Gaussian mixture", year=2000, tags={"value", "relabel"})
def find_modes(mixture: GaussianMixtureDensity, config: Config | None = None,
               starts_ND: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Modes (M, D) and log densities (M,) of a `GaussianMixtureDensity`, highest first.

    starts_ND: points to climb from beside the means.
    """
    config = config or Config()
    x_ND = mixture.means_KD
    if starts_ND is not None:
        x_ND = torch.cat([x_ND, starts_ND.double()])
    unit_D = mixture.covariance().diagonal().sqrt()
    precision_KDD = torch.linalg.inv(mixture.covariances_KDD)
    x_ND = _climb(mixture, x_ND, precision_KDD, unit_D, config)
    x_ND, curved_N = _polish(mixture, x_ND, precision_KDD)
    x_ND = x_ND[curved_N]  # what is left over are saddles that a path from a symmetric start ran into
    log_N = mixture.log_prob(x_ND)
    kept: list[int] = []
    for i in log_N.argsort(descending=True).tolist():
        apart = (x_ND[kept] - x_ND[i]) / unit_D
        if bool((apart.norm(dim=1) > config.merge).all()):
            kept.append(i)
    return x_ND[kept], log_N[kept]


def _climb(mixture: GaussianMixtureDensity, x_ND: Tensor, precision_KDD: Tensor, unit_D: Tensor,
           config: Config) -> Tensor:
    """Fixed-point steps from every start."""
    pulled_KD1 = precision_KDD @ mixture.means_KD[..., None]
    pulled_KD = pulled_KD1[..., 0]
    for _ in range(config.max_iter):
        resp_NK = mixture.responsibilities(x_ND)
        total_NDD = torch.einsum("nk,kde->nde", resp_NK, precision_KDD)
        new_ND = torch.linalg.solve(total_NDD, resp_NK @ pulled_KD)
        step_ND = (new_ND - x_ND) / unit_D
        x_ND = new_ND
        if float(step_ND.abs().max()) < config.tol:
            break
    return x_ND


def _polish(mixture: GaussianMixtureDensity, x_ND: Tensor, precision_KDD: Tensor) -> tuple[Tensor, Tensor]:
    """A few Newton steps on the log density, taken only where they raise it; and where it curves down everywhere."""
    downward_DD = -torch.eye(x_ND.shape[1]).to(x_ND)
    for _ in range(5):
        hessian_NDD = log_hessian(mixture, x_ND, precision_KDD)
        curved_N = _curves_down(hessian_NDD)
        safe_NDD = torch.where(curved_N[:, None, None], hessian_NDD, downward_DD)
        step_ND = -torch.linalg.solve(safe_NDD, mixture.score(x_ND))
        trial_ND = x_ND + step_ND
        higher_N = mixture.log_prob(trial_ND) >= mixture.log_prob(x_ND)
        better_N = curved_N & higher_N
        x_ND = torch.where(better_N[:, None], trial_ND, x_ND)
    hessian_NDD = log_hessian(mixture, x_ND, precision_KDD)
    return x_ND, _curves_down(hessian_NDD)


def _curves_down(hessian_NDD: Tensor) -> Tensor:
    """Where (N,) all eigenvalues are below zero."""
    eigenvalues_ND = torch.linalg.eigvalsh(hessian_NDD)
    return eigenvalues_ND[:, -1] < 0


def log_hessian(mixture: GaussianMixtureDensity, x_ND: Tensor, precision_KDD: Tensor) -> Tensor:
    """Hessian of the log density (N, D, D)."""
    resp_NK = mixture.responsibilities(x_ND)
    gap_NKD = mixture.means_KD - x_ND[:, None]
    pull_NKD = torch.einsum("kde,nke->nkd", precision_KDD, gap_NKD)
    weighted_NKD = resp_NK[..., None] * pull_NKD
    score_ND = weighted_NKD.sum(1)
    squares_NDD = torch.einsum("nk,nkd,nke->nde", resp_NK, pull_NKD, pull_NKD)
    precision_NDD = torch.einsum("nk,kde->nde", resp_NK, precision_KDD)
    curve_NDD = squares_NDD - precision_NDD
    slope_NDD = outer(score_ND, score_ND)
    return curve_NDD - slope_NDD


def example(generator: torch.Generator) -> dict[str, Any]:
    """A mixture with two modes."""
    mixture = GaussianMixtureDensity(
        weights_K=torch.tensor([0.5, 0.5]),
        means_KD=torch.tensor([[-2.0, 0.0], [2.0, 0.0]]),
        covariances_KDD=torch.eye(2).expand(2, 2, 2),
    )
    return {"mixture": mixture}
