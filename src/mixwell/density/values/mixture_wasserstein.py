"""Wasserstein distance between Gaussian mixtures, over couplings that are Gaussian mixtures themselves.

**Equation:** MW2^2(p, q) = min over pi in Pi(w, v) of sum_kl pi_kl W2^2(N_k, M_l); W2^2(N(m, S), N(n, T)) = |m - n|^2 +
tr(S + T - 2 (S^1/2 T S^1/2)^1/2).

**Shapes:** two `GaussianMixtureDensity` of K and L components in; distance (scalar) and coupling (K, L) out.

**Reference:** Delon, Desolneux (2020), A Wasserstein-type distance in the space of Gaussian Mixture Models,
arXiv:1907.05254, proposition 4.

**Differs:** none; the small transport problem is solved exactly by linear programming (HiGHS).

**Fails when:** K L is large (beyond some 10^5): reduce the mixtures first.

**Cost:** O(K L D^3) for the distances, and a linear programme of K L variables.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.registry import find
from mixwell.density.values._transport import transport


@method(title="Wasserstein distance between mixtures", year=2020,
        paper="A Wasserstein-type distance in the space of Gaussian Mixture Models", tags={"density", "distance"})
def mixture_wasserstein(p: Any, q: Any) -> tuple[Tensor, Tensor]:
    """MW2 distance (scalar, in the data's units) and the optimal coupling of components (K, L).

    The distance is differentiable in the parameters for a fixed coupling.
    """
    if p.dim != q.dim:
        raise ValueError(f"the mixtures have {p.dim} and {q.dim} dimensions; expected the same.")
    cost_KL = gaussian_wasserstein_squared(p.means_KD, p.covariances_KDD, q.means_KD, q.covariances_KDD)
    coupling = transport(cost_KL.detach().numpy(), p.weights_K.detach().numpy(), q.weights_K.detach().numpy())
    coupling_KL = torch.from_numpy(np.ascontiguousarray(coupling))
    return (coupling_KL * cost_KL).sum().clamp(min=0).sqrt(), coupling_KL


def gaussian_wasserstein_squared(m_KD: Tensor, s_KDD: Tensor, n_LD: Tensor, t_LDD: Tensor) -> Tensor:
    """W2^2 between all pairs of Gaussians (K, L)."""
    values, vectors = torch.linalg.eigh(s_KDD)
    root_KDD = vectors @ torch.diag_embed(values.clamp(min=0).sqrt()) @ vectors.mT
    middle_KLDD = root_KDD[:, None] @ t_LDD @ root_KDD[:, None]
    fidelity_KL = torch.linalg.eigvalsh(0.5 * (middle_KLDD + middle_KLDD.mT)).clamp(min=0).sqrt().sum(-1)
    trace_K, trace_L = (c.diagonal(dim1=-2, dim2=-1).sum(-1) for c in (s_KDD, t_LDD))
    spread_KL = (trace_K[:, None] + trace_L - 2 * fidelity_KL).clamp(min=0)
    return (m_KD[:, None] - n_LD).square().sum(-1) + spread_KL


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two mixtures in the plane."""
    value = find("density.values.gaussian_mixture").load()
    means = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    cov = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    return {"p": value([0.5, 0.5], means, cov), "q": value([0.2, 0.8], means + 1, 2 * cov)}
