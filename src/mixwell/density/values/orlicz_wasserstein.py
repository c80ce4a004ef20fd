"""Orlicz-Wasserstein distance between mixing measures: how far mass must move, as any convex function counts it.

**Equation:** W_Phi(G, G') = inf{t > 0: min over couplings pi of sum_kl pi_kl Phi(|theta_k - theta'_l| / t) <= 1}, Phi
convex and increasing with Phi(0) = 0. Phi(r) = r^p gives the Wasserstein distance W_p; Phi(r) = exp(r^a) - 1 sees mass
far away that W_p averages out.

**Shapes:** weights (K,) and atoms (K, D); weights (L,) and atoms (L, D); a scalar out.

**Reference:** Guha, Ho, Nguyen (2023), On Excess Mass Behavior in Gaussian Mixture Models with Orlicz-Wasserstein
Distances, arXiv:2301.11496, definition of section 3.

**Differs:** each inner transport problem is solved exactly by linear programming, where the paper's algorithm uses
Sinkhorn's; the definition is from memory of the paper.

**Fails when:** K L is large (a linear programme of K L variables is solved some forty times); a mass below 1e-12
decides (the solver's accuracy).

**Cost:** about forty transport problems at the default `tol`, one a bisection step on t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density.values._transport import transport


@dataclass(frozen=True, kw_only=True)
class Config:
    """The convex function and the accuracy; `ValueError` for a value out of range."""

    phi: Literal["power", "exponential"] = "exponential"  # r^order, or exp(r^order) - 1
    order: float = 2.0  # at least 1
    tol: float = 1e-9  # relative accuracy of the distance

    def __post_init__(self) -> None:
        known = ("power", "exponential")
        if self.phi not in known:
            raise ValueError(f"phi={self.phi!r}; expected 'power' or 'exponential'.")
        if self.order < 1:
            raise ValueError(f"order={self.order}; expected order >= 1.")
        if not 0 < self.tol < 1:
            raise ValueError(f"tol={self.tol}; expected 0 < tol < 1.")

    def __call__(self, r: np.ndarray) -> np.ndarray:
        """Phi, kept finite."""
        power = r**self.order
        if self.phi == "power":
            return power
        return np.expm1(np.minimum(power, 690.0))

    def inverse_at_one(self) -> float:
        """r with Phi(r) = 1."""
        if self.phi == "power":
            return 1.0
        return float(np.log(2.0) ** (1 / self.order))


@method(title="Orlicz-Wasserstein distance", year=2023, tags={"value"},
        paper="On Excess Mass Behavior in Gaussian Mixture Models with Orlicz-Wasserstein Distances")
def orlicz_wasserstein(weights_K: Tensor, atoms_KD: Tensor, weights_L: Tensor, atoms_LD: Tensor,
                       config: Config | None = None) -> float:
    """W_Phi between the discrete measures sum_k w_k at theta_k and sum_l v_l at theta'_l, in the atoms' units.

    Raises a `ValueError` where shapes disagree, or weights are negative or do not sum to one.
    """
    config = config or Config()
    w_K, v_L = _array(weights_K), _array(weights_L)
    far_KL = _distances(_array(atoms_KD), _array(atoms_LD), w_K, v_L)

    def least(cost_KL: np.ndarray, scale: float = 1.0) -> float:
        plan_KL = transport(cost_KL / scale, w_K, v_L)
        return float((plan_KL * cost_KL).sum())

    def excess(t: float) -> float:
        cost_KL = config(far_KL / t)
        return least(cost_KL, max(1.0, cost_KL.max())) - 1

    high = float(far_KL.max()) / config.inverse_at_one()
    if high == 0 or least(far_KL) <= 1e-14 * high:
        return 0.0
    low = high
    while excess(low) <= 0:
        low /= 2
    while high - low > config.tol * high:
        middle = 0.5 * (low + high)
        if excess(middle) > 0:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def _array(value: Any) -> np.ndarray:
    return torch.as_tensor(value).double().numpy()


def _distances(a_KD: np.ndarray, b_LD: np.ndarray, w_K: np.ndarray, v_L: np.ndarray) -> np.ndarray:
    """Distances (K, L) of the atoms of two measures, which are checked."""
    flat = a_KD.ndim == b_LD.ndim == 2 and a_KD.shape[1] == b_LD.shape[1]
    if not flat or len(w_K) != len(a_KD) or len(v_L) != len(b_LD):
        raise ValueError(f"got weights of {w_K.shape} and {v_L.shape}, atoms of {a_KD.shape} and {b_LD.shape}; "
                         "expected (K,), (L,), (K, D), (L, D).")
    for weights in (w_K, v_L):
        total = weights.sum()
        if (weights < 0).any() or abs(total - 1) > 1e-6:
            raise ValueError(f"weights must not be negative and must sum to 1, got a sum of {total:.6f}.")
    gap_KLD = a_KD[:, None] - b_LD
    return np.linalg.norm(gap_KLD, axis=-1)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two measures on the line."""
    atoms_K1 = torch.randn(2, 1, generator=generator)
    return {
        "weights_K": torch.tensor([0.5, 0.5]),
        "atoms_KD": atoms_K1,
        "weights_L": torch.tensor([0.9, 0.1]),
        "atoms_LD": torch.tensor([[0.0], [10.0]]),
    }
