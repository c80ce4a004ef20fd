"""Multinomial-logistic mixture of experts, with a softmax gate that may read a transform of the input.

**Equation:** p(Y = s | x) = sum_k softmax_k(w_k0 + w_k . M(x)) softmax_s(b_ks + a_ks . x). M(x) = x is the standard
gate; when part of the experts' slopes vanish, d/dw and d/da of the mixture are then tied by a differential equation,
and estimates of a model with spare experts converge slower than any power of n. A nonlinear M breaks the tie.

**Shapes:** X (N, D), y (N,) of C classes; `gate_coef_` (K, 1 + D), `coef_` (K, C, 1 + D), for standardised columns.

**Reference:** H. Nguyen, Akbarian, T. Nguyen, Ho (2023), A General Theory for Softmax Gating Multinomial Logistic
Mixture of Experts, arXiv:2310.14188.

**Differs:** written from memory of the paper. Coefficients are centred over classes and over experts instead of the
last being zero; `voronoi_loss` compares them so. A small ridge, part of the likelihood that EM climbs, keeps
coefficients finite where classes or regions can be separated perfectly.

**Fails when:** M is a polynomial of x (a tie of a higher order can come back); experts differ in nothing but the gate.

**Cost:** O(N K (K D^2 + C^2 D^2)) a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import softmax

from mixwell.core.method import method
from mixwell.density._gaussian import Array
from mixwell.density.regression._parts import (
    GatedClassifier,
    MultinomialExperts,
    SoftmaxGates,
    check_common,
    with_intercept,
)

TRANSFORMS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda z: z,
    "tanh": np.tanh,
    "sine": np.sin,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the multinomial-logistic mixture of experts; `ValueError` for one out of range."""

    n_experts: int = 2  # K
    gate_transform: Literal["identity", "tanh", "sine", "sigmoid"] = "identity"  # M, of standardised columns
    ridge: float = 1e-2  # penalty on squared slopes of gates and experts, in nats
    tol: float = 1e-6  # stop when a step gains less, in nats a row
    max_iter: int = 300
    n_init: int = 1  # starts; the likeliest is kept
    init: str = "kmeans"  # "kmeans" or "random" (cells of random rows)
    random_state: Any = None  # of the starts

    def __post_init__(self) -> None:
        check_common(self)
        if self.gate_transform not in TRANSFORMS:
            raise ValueError(f"gate_transform is {self.gate_transform!r}; expected one of {', '.join(TRANSFORMS)}")
        if self.ridge < 0:
            raise ValueError(f"ridge is {self.ridge}; expected 0 or more")


def voronoi_loss(gate_KP: Array, coef_KCP: Array, true_gate_JP: Array, true_coef_JCP: Array) -> float:
    """Distance of a fitted mixing measure from the true one, both centred over experts and over classes.

    Every fitted expert belongs to the nearest true one; a true expert that several share counts squared distances,
    weighted by the fitted gates' exponentiated intercepts, plus the difference of those sums. Gates are compared up to
    the one vector that may be added to all of them.
    """
    fitted_KA = _atoms(gate_KP, coef_KCP)
    truth_JA = _atoms(true_gate_JP, true_coef_JCP)
    mass_K, true_mass_J = softmax(gate_KP[:, 0]), softmax(true_gate_JP[:, 0])
    gap_KJA = fitted_KA[:, None] - truth_JA
    nearest_K = (gap_KJA**2).sum(-1).argmin(1)
    own_KA = truth_JA[nearest_K]
    slopes = slice(gate_KP.shape[1] - 1)
    fitted_KA[:, slopes] -= np.average(fitted_KA[:, slopes] - own_KA[:, slopes], axis=0, weights=mass_K)
    distance_K = np.sqrt(((fitted_KA - own_KA) ** 2).sum(1))
    loss = 0.0
    for j, true_mass in enumerate(true_mass_J):
        cell = np.flatnonzero(nearest_K == j)
        power = 1 if len(cell) == 1 else 2
        excess = mass_K[cell].sum() - true_mass
        loss += abs(excess) + mass_K[cell] @ distance_K[cell] ** power
    return float(loss)


def _atoms(gate_KP: Array, coef_KCP: Array) -> Array:
    """Every expert's gate slopes and coefficients side by side (K, A)."""
    slopes_KD = gate_KP[:, 1:]
    coef_KA = coef_KCP.reshape(len(gate_KP), -1)
    return np.concatenate([slopes_KD, coef_KA], axis=1)


@method(
    title="Multinomial-logistic mixture of experts",
    paper="A General Theory for Softmax Gating Multinomial Logistic Mixture of Experts",
    year=2023,
    tags={"estimator", "em", "responsibilities", "sklearn"},
)
class MultinomialMixtureOfExperts(GatedClassifier, config=Config):
    """Softmax-gated mixture of logistic regressions; see the module's card and `Config`."""

    def fit(self, X: Any, y: Any) -> MultinomialMixtureOfExperts:
        """Fit to X (N, D) and labels y (N,); a `ValueError` where options or data are none that can be fitted."""
        config = self._config()
        x_ND, y_N = self._read(X, y)
        self._transform = config.gate_transform
        C = len(self.classes_)
        hot_NC = np.eye(C)[y_N]
        gates = SoftmaxGates(config.ridge)
        experts = MultinomialExperts(C, config.ridge)
        self._fit_gated(x_ND, y_N, hot_NC, gates, experts, config)
        return self

    def _gate_design(self, z_ND: Array) -> Array:
        transform = TRANSFORMS[self._transform]
        return with_intercept(transform(z_ND))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two classes of which the second lies between two halves of the first."""
    uniform_ND = torch.rand(120, 2, generator=generator, dtype=torch.float64)
    x_ND = uniform_ND * 4 - 2
    distance_N = x_ND[:, 0].abs()
    within_N = distance_N < 1
    estimator = MultinomialMixtureOfExperts(random_state=0)
    return {
        "estimator": estimator,
        "X": x_ND.numpy(),
        "y": within_N.long().numpy(),
    }
