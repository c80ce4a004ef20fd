"""Wasserstein distance between Gaussian mixtures, over couplings that are Gaussian mixtures themselves.

**Equation:** MW2^2(p, q) = min over pi in Pi(w, v) of sum_kl pi_kl W2^2(N_k, M_l); W2^2(N(m, S), N(n, T)) = |m - n|^2 +
tr(S + T - 2 (S^1/2 T S^1/2)^1/2).

**Shapes:** two `GaussianMixtureDensity` of K and L components in; distance (scalar) and coupling (K, L) out.

**Reference:** Delon, Desolneux (2020), A Wasserstein-type distance in the space of Gaussian Mixture Models,
arXiv:1907.05254, proposition 4.

**Differs:** by default none: the small transport problem is solved exactly by linear programming (HiGHS). With
`smoothing` the coupling is Sinkhorn's, moved onto the marginals (Cuturi, 2013, arXiv:1306.0895; Altschuler, Weed,
Rigollet, 2017, arXiv:1705.09634), and the distance an upper bound. tr (S^1/2 T S^1/2)^1/2 is computed as the roots of
the eigenvalues of L^T T L, S = L L^T, which are the same and whose gradient exists for round S too.

**Fails when:** K L is large (beyond some 10^5): reduce the mixtures first, or pass `smoothing`. The gradient does not
exist at distance 0.

**Cost:** O(K L D^3) for the distances, and a linear programme of K L variables, or O(K L) a Sinkhorn step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import Array, cholesky, symmetric
from mixwell.density.values._transport import smoothed, transport
from mixwell.density.values.gaussian_mixture import GaussianMixtureDensity


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the coupling is found; `ValueError` for a value out of range."""

    smoothing: float = 0.0  # entropy's weight over the independent coupling's cost; 0: the exact optimum
    max_iter: int = 1000  # Sinkhorn steps, at most; smoothing below 0.01 may need more to come nearer

    def __post_init__(self) -> None:
        if not self.smoothing >= 0 or self.max_iter < 1:
            raise ValueError(f"smoothing={self.smoothing}, max_iter={self.max_iter}; expected at least 0 and 1.")


@method(title="Wasserstein distance between mixtures", year=2020,
        paper="A Wasserstein-type distance in the space of Gaussian Mixture Models",
        tags={"value", "relabel", "differentiable"})
def mixture_wasserstein(p: GaussianMixtureDensity, q: GaussianMixtureDensity,
                        config: Config | None = None) -> tuple[Tensor, Tensor]:
    """MW2 distance (scalar, in the data's units) and the optimal coupling of components (K, L).

    p, q: `GaussianMixtureDensity` of the same dimension (else a `ValueError`). The distance is differentiable in the
    means and covariances, the coupling taken as fixed (its true gradient where the optimal coupling is unique).
    """
    config = config or Config()
    if p.dim != q.dim:
        raise ValueError(f"the mixtures have {p.dim} and {q.dim} dimensions; expected the same.")
    cost_KL = gaussian_wasserstein_squared(p.means_KD, p.covariances_KDD, q.means_KD, q.covariances_KDD)
    cost = _numbers(cost_KL)
    w_K, v_L = _numbers(p.weights_K), _numbers(q.weights_K)
    if config.smoothing == 0:
        coupling = transport(cost, w_K, v_L)
    else:
        coupling = smoothed(cost, w_K, v_L, config.smoothing, config.max_iter)
    coupling_KL = torch.from_numpy(coupling).to(cost_KL.device)
    square = (coupling_KL * cost_KL).sum()
    distance = square.clamp(min=0).sqrt()
    return distance, coupling_KL


def _numbers(part: Tensor) -> Array:
    return part.detach().cpu().numpy()


def gaussian_wasserstein_squared(m_KD: Tensor, s_KDD: Tensor, n_LD: Tensor, t_LDD: Tensor) -> Tensor:
    """W2^2 between all pairs of Gaussians (K, L)."""
    lower_K1DD = cholesky(s_KDD)[:, None]
    middle_KLDD = lower_K1DD.mT @ t_LDD @ lower_K1DD
    eigenvalues_KLD = torch.linalg.eigvalsh(symmetric(middle_KLDD))
    fidelity_KL = eigenvalues_KLD.clamp(min=0).sqrt().sum(-1)
    traces_KL = _traces(s_KDD)[:, None] + _traces(t_LDD)
    spread_KL = (traces_KL - 2 * fidelity_KL).clamp(min=0)
    gap_KLD = m_KD[:, None] - n_LD
    return gap_KLD.square().sum(-1) + spread_KL


def _traces(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two mixtures in the plane."""
    means_KD = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    unit_KDD = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    even_K = torch.tensor([0.5, 0.5])
    uneven_K = torch.tensor([0.2, 0.8])
    return {
        "p": GaussianMixtureDensity(even_K, means_KD, unit_KDD),
        "q": GaussianMixtureDensity(uneven_K, means_KD + 1, 2 * unit_KDD),
    }
