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
    """How modes are searched."""

    max_iter: int = 500  # fixed-point steps
    tol: float = 1e-9  # step length, in standard deviations of the mixture, below which a path has ended
    merge: float = 1e-3  # ends closer than this, in the same unit, are one mode

    def __post_init__(self) -> None:
        if self.max_iter < 1 or self.tol <= 0 or self.merge <= 0:
            raise ValueError(f"max_iter={self.max_iter}, tol={self.tol}, merge={self.merge}; all must be positive.")


@method(title="Modes of a Gaussian mixture", year=2000, tags={"value", "relabel"})
def find_modes(mixture: GaussianMixtureDensity, config: Config | None = None,
               starts_ND: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Modes (M, D) and log densities (M,) of a `GaussianMixtureDensity`, highest first.

    starts_ND: points to climb from beside the means.
    """
    config = config or Config()
    x_ND = mixture.means_KD if starts_ND is None else torch.cat([mixture.means_KD, starts_ND.double()])
    unit = mixture.covariance().diagonal().sqrt()
    precision_KDD = torch.linalg.inv(mixture.covariances_KDD)
    pulled_KD = (precision_KDD @ mixture.means_KD[..., None])[..., 0]
    for _ in range(config.max_iter):
        resp_NK = mixture.responsibilities(x_ND)
        total_NDD = torch.einsum("nk,kde->nde", resp_NK, precision_KDD)
        new_ND = torch.linalg.solve(total_NDD, resp_NK @ pulled_KD)
        moved = float(((new_ND - x_ND) / unit).abs().max())
        x_ND = new_ND
        if moved < config.tol:
            break
    x_ND, curved = _polish(mixture, x_ND, precision_KDD)
    x_ND = x_ND[curved]  # what is left over are saddles that a path from a symmetric start ran into
    log_N = mixture.log_prob(x_ND)
    kept: list[int] = []
    for i in log_N.argsort(descending=True).tolist():
        if all(float(((x_ND[i] - x_ND[j]) / unit).norm()) > config.merge for j in kept):
            kept.append(i)
    return x_ND[kept], log_N[kept]


def _polish(mixture: GaussianMixtureDensity, x_ND: Tensor, precision_KDD: Tensor) -> tuple[Tensor, Tensor]:
    """A few Newton steps on the log density, taken only where they raise it; and where it curves down everywhere."""
    for _ in range(5):
        hessian_NDD = log_hessian(mixture, x_ND, precision_KDD)
        curved = torch.linalg.eigvalsh(hessian_NDD)[:, -1] < 0
        safe_NDD = torch.where(curved[:, None, None], hessian_NDD, -torch.eye(x_ND.shape[1]).to(x_ND))
        step_ND = -torch.linalg.solve(safe_NDD, mixture.score(x_ND))
        better = curved & (mixture.log_prob(x_ND + step_ND) >= mixture.log_prob(x_ND))
        x_ND = torch.where(better[:, None], x_ND + step_ND, x_ND)
    return x_ND, torch.linalg.eigvalsh(log_hessian(mixture, x_ND, precision_KDD))[:, -1] < 0


def log_hessian(mixture: GaussianMixtureDensity, x_ND: Tensor, precision_KDD: Tensor) -> Tensor:
    """Hessian of the log density (N, D, D)."""
    resp_NK = mixture.responsibilities(x_ND)
    pull_NKD = torch.einsum("kde,nke->nkd", precision_KDD, mixture.means_KD - x_ND[:, None])
    score_ND = (resp_NK[..., None] * pull_NKD).sum(1)
    outer_NDD = torch.einsum("nk,nkd,nke->nde", resp_NK, pull_NKD, pull_NKD)
    return (outer_NDD - torch.einsum("nk,kde->nde", resp_NK, precision_KDD)
            - outer(score_ND, score_ND))


def example(generator: torch.Generator) -> dict[str, Any]:
    """A mixture with two modes."""
    means, cov = torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), torch.eye(2).expand(2, 2, 2)
    return {"mixture": GaussianMixtureDensity(torch.tensor([0.5, 0.5]), means, cov)}
