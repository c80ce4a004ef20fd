"""Reduction of a Gaussian mixture to fewer components: the pair whose merging costs least, again and again.

**Equation:** merged moments w = w_i + w_j, m = (w_i m_i + w_j m_j) / w, S = (w_i S_i + w_j S_j) / w + w_i w_j / w^2
(m_i - m_j)(m_i - m_j)^T; cost B = (w log|S| - w_i log|S_i| - w_j log|S_j|) / 2, a bound on the KL divergence lost.

**Shapes:** a `GaussianMixtureDensity` of K components in, one of at most `n_components` out.

**Reference:** Runnalls (2007), Kullback-Leibler Approach to Gaussian Mixture Reduction, equation 21.

**Differs:** optional refinement: `refine` steps of assigning every component to its nearest (KL) reduced one and
merging the groups anew (Davis, Dhillon, 2006, Differential Entropic Clustering of Multivariate Gaussians), which may
leave fewer. Components of weight 0 are dropped first.

**Fails when:** greedy merging of many equal components ends in a poor grouping; raise `refine`.

**Cost:** O(K^2 D^3) once and O(K D^3) a merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import divergence, moments, outer
from mixwell.density.values.gaussian_mixture import GaussianMixtureDensity


@dataclass(frozen=True, kw_only=True)
class Config:
    """How far and how a mixture is reduced."""

    n_components: int = 1  # how many are left
    refine: int = 0  # assignment steps after the greedy merging

    def __post_init__(self) -> None:
        if self.n_components < 1 or self.refine < 0:
            raise ValueError(f"n_components={self.n_components}, refine={self.refine}; expected at least 1 and 0.")


@method(title="Mixture reduction", year=2007, tags={"value", "relabel", "differentiable"})
def reduce_mixture(mixture: GaussianMixtureDensity, config: Config) -> GaussianMixtureDensity:
    """A mixture of at most `config.n_components` with the same mean and covariance."""
    there = mixture.weights_K > 0
    given = (mixture.weights_K[there], mixture.means_KD[there], mixture.covariances_KDD[there])
    w, m, s = (part.clone() for part in given)
    cost = merging_cost(w, m, s, torch.arange(len(w)))
    alive = torch.ones(len(w), dtype=torch.bool)
    for _ in range(len(w) - config.n_components):
        i, j = divmod(int(cost.argmin()), len(w))
        both = torch.tensor([i, j])
        w[i], m[i], s[i] = merge(w[both], m[both], s[both])
        w[j], alive[j] = 0.0, False
        cost[j], cost[:, j] = torch.inf, torch.inf
        row = merging_cost(w, m, s, torch.tensor([i]))[0]
        row[~alive] = torch.inf
        cost[i], cost[:, i] = row, row
    reduced = (w[alive], m[alive], s[alive])
    for _ in range(config.refine):
        nearest = divergences(given[1], given[2], reduced[1], reduced[2]).argmin(1)
        groups = [nearest == k for k in range(len(reduced[0])) if bool((nearest == k).any())]
        parts = [merge(*(part[g] for part in given)) for g in groups]
        reduced = tuple(torch.stack(p) for p in zip(*parts))  # type: ignore[assignment]
    return type(mixture)(reduced[0] / reduced[0].sum(), *reduced[1:])


def merge(w_K: Tensor, m_KD: Tensor, s_KDD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, mean and covariance of some components together."""
    w = w_K.sum()
    share_K = w_K / w.clamp(min=1e-300)
    return w, *moments(share_K, m_KD, s_KDD)


def merging_cost(w_K: Tensor, m_KD: Tensor, s_KDD: Tensor, rows: Tensor) -> Tensor:
    """Runnalls' bound for merging each of `rows` with every component (R, K); infinite with itself."""
    w_RK = (w_K[rows, None] + w_K).clamp(min=1e-300)
    a_RK, b_RK = w_K[rows, None] / w_RK, w_K / w_RK
    diff_RKD = m_KD[rows, None] - m_KD
    s_RKDD = (a_RK[..., None, None] * s_KDD[rows, None] + b_RK[..., None, None] * s_KDD
              + (a_RK * b_RK)[..., None, None] * outer(diff_RKD, diff_RKD))
    own_K = w_K * torch.logdet(s_KDD)
    cost = 0.5 * (w_RK * torch.logdet(s_RKDD) - own_K[rows, None] - own_K)
    cost[torch.arange(len(rows)), rows] = torch.inf
    return cost


def divergences(m_ID: Tensor, s_IDD: Tensor, n_JD: Tensor, t_JDD: Tensor) -> Tensor:
    """KL(N(m_i, S_i) || N(n_j, T_j)) for all pairs (I, J), in nats."""
    inverse_JDD = torch.linalg.inv(t_JDD)
    diff_IJD = n_JD - m_ID[:, None]
    spread = torch.einsum("jde,ied->ij", inverse_JDD, s_IDD)
    far = torch.einsum("ijd,jde,ije->ij", diff_IJD, inverse_JDD, diff_IJD)
    log_ratio_IJ = torch.logdet(t_JDD) - torch.logdet(s_IDD)[:, None]
    return divergence(spread + far, log_ratio_IJ, m_ID.shape[1])


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three components, two of them close."""
    means = torch.tensor([[0.0, 0.0], [0.2, 0.0], [5.0, 5.0]], dtype=torch.float64)
    mixture = GaussianMixtureDensity(torch.tensor([0.3, 0.3, 0.4]), means, torch.eye(2).expand(3, 2, 2))
    return {"mixture": mixture, "config": Config(n_components=2)}
