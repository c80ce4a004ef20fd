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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import divergence, moments, outer
from mixwell.density.values.gaussian_mixture import GaussianMixtureDensity


@dataclass(frozen=True, kw_only=True)
class Config:
    """How far and how a mixture is reduced; `ValueError` for a value out of range."""

    n_components: int = 1  # how many are left
    refine: int = 0  # assignment steps after the greedy merging

    def __post_init__(self) -> None:
        if self.n_components < 1 or self.refine < 0:
            raise ValueError(f"n_components={self.n_components}, refine={self.refine}; expected at least 1 and 0.")


@method(title="Mixture reduction", year=2007, tags={"value", "relabel", "differentiable"})
def reduce_mixture(mixture: GaussianMixtureDensity, config: Config) -> GaussianMixtureDensity:
    """A mixture of at most `config.n_components` with the same mean and covariance."""
    everything = Parts(mixture.weights_K, mixture.means_KD, mixture.covariances_KDD)
    given = everything.select(mixture.weights_K > 0)
    reduced = _merged(given, config.n_components)
    for _ in range(config.refine):
        reduced = _reassigned(given, reduced)
    share_K = reduced.w_K / reduced.w_K.sum()
    return type(mixture)(share_K, reduced.m_KD, reduced.s_KDD)


class Parts(NamedTuple):
    """Weights, means and covariances of components."""

    w_K: Tensor
    m_KD: Tensor
    s_KDD: Tensor

    def select(self, index: Tensor) -> Parts:
        """Some of the components."""
        return Parts(*(part[index] for part in self))


def _merged(given: Parts, left: int) -> Parts:
    """Greedy merging of the cheapest pair until so many are left."""
    parts = Parts(*(part.clone() for part in given))
    w_K, m_KD, s_KDD = parts
    K = len(w_K)
    everyone_K = torch.arange(K)
    cost_KK = merging_cost(*parts, everyone_K)
    alive_K = torch.ones(K, dtype=torch.bool)
    for _ in range(K - left):
        cheapest = int(cost_KK.argmin())
        i, j = divmod(cheapest, K)
        both = parts.select(torch.tensor([i, j]))
        w_K[i], m_KD[i], s_KDD[i] = merge(*both)
        w_K[j] = 0.0
        alive_K[j] = False
        cost_KK[j] = torch.inf
        cost_KK[:, j] = torch.inf
        cost_1K = merging_cost(*parts, everyone_K[i : i + 1])
        cost_K = cost_1K[0]
        cost_K[~alive_K] = torch.inf
        cost_KK[i] = cost_K
        cost_KK[:, i] = cost_K
    return parts.select(alive_K)


def _reassigned(given: Parts, reduced: Parts) -> Parts:
    """Every given component merged into the nearest that is left."""
    distance_IJ = divergences(given.m_KD, given.s_KDD, reduced.m_KD, reduced.s_KDD)
    nearest_I = distance_IJ.argmin(1)
    merged = []
    for j in nearest_I.unique():
        group = given.select(nearest_I == j)
        merged.append(merge(*group))
    stacked = [torch.stack(part) for part in zip(*merged)]
    return Parts(*stacked)


def merge(w_K: Tensor, m_KD: Tensor, s_KDD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, mean and covariance of some components together."""
    w = w_K.sum()
    share_K = w_K / w.clamp(min=1e-300)
    return w, *moments(share_K, m_KD, s_KDD)


def merging_cost(w_K: Tensor, m_KD: Tensor, s_KDD: Tensor, rows: Tensor) -> Tensor:
    """Runnalls' bound for merging each of `rows` with every component (R, K); infinite with itself."""
    w_R1 = w_K[rows, None]
    w_RK = (w_R1 + w_K).clamp(min=1e-300)
    a_RK, b_RK = w_R1 / w_RK, w_K / w_RK
    diff_RKD = m_KD[rows, None] - m_KD
    between_RKDD = _each(a_RK * b_RK) * outer(diff_RKD, diff_RKD)
    within_RKDD = _each(a_RK) * s_KDD[rows, None] + _each(b_RK) * s_KDD
    log_det_RK = torch.logdet(within_RKDD + between_RKDD)
    own_K = w_K * torch.logdet(s_KDD)
    cost_RK = 0.5 * (w_RK * log_det_RK - own_K[rows, None] - own_K)
    cost_RK[torch.arange(len(rows)), rows] = torch.inf
    return cost_RK


def _each(value_RK: Tensor) -> Tensor:
    """One factor for a matrix each."""
    return value_RK[..., None, None]


def divergences(m_ID: Tensor, s_IDD: Tensor, n_JD: Tensor, t_JDD: Tensor) -> Tensor:
    """KL(N(m_i, S_i) || N(n_j, T_j)) for all pairs (I, J), in nats."""
    D = m_ID.shape[1]
    inverse_JDD = torch.linalg.inv(t_JDD)
    diff_IJD = n_JD - m_ID[:, None]
    spread_IJ = torch.einsum("jde,ied->ij", inverse_JDD, s_IDD)
    far_IJ = torch.einsum("ijd,jde,ije->ij", diff_IJD, inverse_JDD, diff_IJD)
    square_IJ = spread_IJ + far_IJ
    log_det_I1 = torch.logdet(s_IDD)[:, None]
    log_ratio_IJ = torch.logdet(t_JDD) - log_det_I1
    return divergence(square_IJ, log_ratio_IJ, D)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three components, two of them close."""
    means_KD = torch.tensor([[0.0, 0.0], [0.2, 0.0], [5.0, 5.0]], dtype=torch.float64)
    mixture = GaussianMixtureDensity(
        weights_K=torch.tensor([0.3, 0.3, 0.4]),
        means_KD=means_KD,
        covariances_KDD=torch.eye(2).expand(3, 2, 2),
    )
    return {
        "mixture": mixture,
        "config": Config(n_components=2),
    }
