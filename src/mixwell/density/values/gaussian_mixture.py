"""Gaussian mixture as a value: products, convolutions, conditionals, marginals and affine images are mixtures again.

**Equation:** p(x) = sum_k w_k N(x; m_k, S_k). Product of N(m, S) and N(n, T): N(c, C) N(m; n, S + T), C = (S^-1 +
T^-1)^-1, c = C (S^-1 m + T^-1 n). Conditional on x_o: w_k N(x_o; m_o, S_oo), mean m_u + S_uo S_oo^-1 (x_o - m_o),
covariance S_uu - S_uo S_oo^-1 S_ou. Score: sum_k r_k(x) S_k^-1 (m_k - x).

**Shapes:** `weights_K`, `means_KD`, `covariances_KDD`, float64 tensors; x (N, D). Every operation is differentiable.

**Reference:** Petersen, Pedersen (2012), The Matrix Cookbook, section 8; Anderson (2003), An Introduction to
Multivariate Statistical Analysis, section 2.5.

**Differs:** a component of weight 0 has no density anywhere, however far the others are.

**Fails when:** a covariance is singular, the same coordinate is named twice, or the rows of an affine map depend on
each other (`ValueError`, at the latest when a density is asked for): add a little to the diagonal first.

**Cost:** O(K D^3) for most; products and convolutions have K_1 K_2 components, see `density.values.reduction`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._covariances import as_full
from mixwell.density._gaussian import cholesky, gain, log_prob, log_weights, moments, symmetric

ASYMMETRY = 1e-4  # of the two standard deviations: far above the rounding of single precision


@dataclass(frozen=True, kw_only=True)
class Config:
    """A value has no option: its parameters are its fields."""


@method(title="Gaussian mixture as a value", year=2003, tags={"value", "density", "differentiable", "relabel"})
@dataclass(frozen=True, eq=False)
class GaussianMixtureDensity:
    """A normalised Gaussian mixture. weights_K sum to one; covariances_KDD are symmetric positive definite."""

    weights_K: Tensor
    means_KD: Tensor
    covariances_KDD: Tensor

    def __post_init__(self) -> None:
        for name in ("weights_K", "means_KD", "covariances_KDD"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64))
        K, D = self.means_KD.shape if self.means_KD.ndim == 2 else (0, 0)
        if K == 0 or self.weights_K.shape != (K,) or self.covariances_KDD.shape != (K, D, D):
            raise ValueError(f"got weights {tuple(self.weights_K.shape)}, means {tuple(self.means_KD.shape)}, "
                             f"covariances {tuple(self.covariances_KDD.shape)}; expected (K,), (K, D), (K, D, D).")
        for name in ("means_KD", "covariances_KDD"):
            if not bool(getattr(self, name).isfinite().all()):
                raise ValueError(f"{name} holds NaN or infinity; expected finite numbers.")
        scale_KD = self.covariances_KDD.detach().diagonal(dim1=1, dim2=2).abs().sqrt()
        gap_KDD = (self.covariances_KDD - self.covariances_KDD.mT).detach().abs()
        uneven_K = (gap_KDD > ASYMMETRY * scale_KD[:, :, None] * scale_KD[:, None]).flatten(1).any(1)
        if bool(uneven_K.any()):
            raise ValueError(f"covariance [{int(uneven_K.nonzero()[0, 0])}] is not symmetric.")
        if not (bool((self.weights_K >= 0).all()) and abs(float(self.weights_K.detach().sum()) - 1) <= 1e-6):
            raise ValueError("weights must not be negative and must sum to 1, got a sum of "
                             f"{self.weights_K.sum():.6f}.")

    @classmethod
    def from_estimator(cls, model: Any) -> GaussianMixtureDensity:
        """The density of a fitted `GaussianMixture` of any covariance type (scikit-learn's too)."""
        weights_K, means_KD, covariances = (torch.as_tensor(value, dtype=torch.float64) for value in
                                            (model.weights_, model.means_, model.covariances_))
        full_1KDD = as_full(model.covariance_type, covariances[None], means_KD[None])
        return cls(weights_K / weights_K.sum(), means_KD, full_1KDD[0])

    @property
    def dim(self) -> int:
        """D."""
        return self.means_KD.shape[1]

    def log_joint(self, x_ND: Tensor) -> Tensor:
        """Log weight plus log density of each component (N, K)."""
        diff_KND = self._differences(x_ND).transpose(0, 1)
        return log_weights(self.weights_K) + log_prob(diff_KND, self.covariances_KDD).T

    def log_prob(self, x_ND: Tensor) -> Tensor:
        """Log density (N,), in nats."""
        return torch.logsumexp(self.log_joint(x_ND), 1)

    def responsibilities(self, x_ND: Tensor) -> Tensor:
        """Posterior probability of each component (N, K)."""
        return torch.softmax(self.log_joint(x_ND), 1)

    def score(self, x_ND: Tensor) -> Tensor:
        """Gradient of the log density (N, D), exact."""
        pull_NKD = torch.cholesky_solve(-self._differences(x_ND)[..., None], cholesky(self.covariances_KDD))
        return (self.responsibilities(x_ND)[..., None] * pull_NKD[..., 0]).sum(1)

    def mean(self) -> Tensor:
        """Mean (D,)."""
        return self.weights_K @ self.means_KD

    def covariance(self) -> Tensor:
        """Covariance (D, D): within plus between components."""
        return moments(self.weights_K, self.means_KD, self.covariances_KDD)[1]

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows (count, D) and the components they come from (count,)."""
        labels_N = torch.multinomial(self.weights_K, count, replacement=True, generator=generator)
        noise_ND = torch.randn(count, self.dim, generator=generator, dtype=torch.float64, device=self.means_KD.device)
        root_KDD = cholesky(self.covariances_KDD)
        return self.means_KD[labels_N] + (root_KDD[labels_N] @ noise_ND[..., None])[..., 0], labels_N

    def affine(self, matrix_ED: Tensor, shift_E: Tensor | float = 0.0) -> GaussianMixtureDensity:
        """Density of A x + b; the rows of A (E, D) must be independent."""
        matrix_ED = torch.as_tensor(matrix_ED, dtype=torch.float64)
        if matrix_ED.ndim != 2 or matrix_ED.shape[1] != self.dim:
            raise ValueError(f"got a matrix of shape {tuple(matrix_ED.shape)}; expected (E, {self.dim}).")
        return GaussianMixtureDensity(self.weights_K, self.means_KD @ matrix_ED.T + shift_E,
                                      symmetric(matrix_ED @ self.covariances_KDD @ matrix_ED.T))

    def marginal(self, keep: Sequence[int]) -> GaussianMixtureDensity:
        """Density of some coordinates, in the order given; `keep` may also be D truth values."""
        kept = self._coordinates(keep)
        return GaussianMixtureDensity(self.weights_K, self.means_KD[:, kept],
                                      self.covariances_KDD[:, kept[:, None], kept])

    def condition(self, known: Sequence[int], values: Tensor) -> GaussianMixtureDensity:
        """Density of the other coordinates, given `values` of the known ones (or D truth values which are known)."""
        o = self._coordinates(known)
        u = torch.tensor([i for i in range(self.dim) if i not in set(o.tolist())], dtype=torch.long)
        if len(u) == 0:
            raise ValueError("every coordinate is known; expected at least one to be left.")
        values_O = torch.as_tensor(values, dtype=torch.float64)
        if values_O.shape != o.shape:
            raise ValueError(f"got values of shape {tuple(values_O.shape)}; expected ({len(o)},), one for each known "
                             "coordinate.")
        if not bool(values_O.isfinite().all()):
            raise ValueError(f"got values {values_O.tolist()}; expected finite numbers.")
        diff_KO = values_O - self.means_KD[:, o]
        seen_KOO, cross_KUO = self.covariances_KDD[:, o[:, None], o], self.covariances_KDD[:, u[:, None], o]
        gain_KUO = gain(cross_KUO, seen_KOO)
        log_weights_K = log_weights(self.weights_K) + log_prob(diff_KO[:, None], seen_KOO)[:, 0]
        covariances = symmetric(self.covariances_KDD[:, u[:, None], u] - gain_KUO @ cross_KUO.mT)
        means_KU = self.means_KD[:, u] + (gain_KUO @ diff_KO[..., None])[..., 0]
        return GaussianMixtureDensity(shares(log_weights_K), means_KU, covariances)

    def product(self, other: GaussianMixtureDensity) -> tuple[GaussianMixtureDensity, Tensor]:
        """Normalised product of the two densities (K_1 K_2 components), and log of the integral of the product."""
        weights_P, m_PD, s_PDD, n_PD, t_PDD = self._pairs(other)
        log_overlap_P = log_weights(weights_P) + log_prob((m_PD - n_PD)[:, None], s_PDD + t_PDD)[:, 0]
        gain_PDD = gain(s_PDD, s_PDD + t_PDD)
        means_PD = m_PD + (gain_PDD @ (n_PD - m_PD)[..., None])[..., 0]
        covariances = symmetric(gain_PDD @ t_PDD)
        return (GaussianMixtureDensity(shares(log_overlap_P), means_PD, covariances),
                torch.logsumexp(log_overlap_P, 0))

    def convolve(self, other: GaussianMixtureDensity) -> GaussianMixtureDensity:
        """Density of the sum of independent draws (K_1 K_2 components)."""
        weights_P, m_PD, s_PDD, n_PD, t_PDD = self._pairs(other)
        return GaussianMixtureDensity(weights_P, m_PD + n_PD, s_PDD + t_PDD)

    def _coordinates(self, wanted: Sequence[int]) -> Tensor:
        kept = torch.as_tensor(wanted)
        if kept.dtype == torch.bool and kept.shape == (self.dim,):
            kept = kept.nonzero()[:, 0]
        names, whole = kept.tolist(), not (kept.dtype == torch.bool or kept.is_floating_point() or kept.is_complex())
        if kept.ndim != 1 or not whole or not names or len(set(names)) < len(names) or not all(
                0 <= i < self.dim for i in names):
            raise ValueError(f"got coordinates {names}; expected different whole numbers from 0 to {self.dim - 1}, or "
                             f"{self.dim} truth values, one of them true.")
        return kept.long()

    def _differences(self, x_ND: Tensor) -> Tensor:
        """x minus the means (N, K, D)."""
        if x_ND.ndim != 2 or x_ND.shape[1] != self.dim:
            raise ValueError(f"got x of shape {tuple(x_ND.shape)}; expected (N, {self.dim}).")
        return x_ND[:, None] - self.means_KD

    def _pairs(self, other: GaussianMixtureDensity) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        if self.dim != other.dim:
            raise ValueError(f"the mixtures have {self.dim} and {other.dim} dimensions; expected the same.")
        i, j = (a.reshape(-1) for a in torch.meshgrid(torch.arange(len(self.weights_K)),
                                                      torch.arange(len(other.weights_K)), indexing="ij"))
        return (self.weights_K[i] * other.weights_K[j], self.means_KD[i], self.covariances_KDD[i],
                other.means_KD[j], other.covariances_KDD[j])


def shares(log_weights_K: Tensor) -> Tensor:
    """Weights that sum to one, or a `ValueError` where all are zero in double precision."""
    if bool(log_weights_K.isneginf().all()):
        raise ValueError("the density there is zero in double precision; expected a place that some component reaches.")
    return torch.softmax(log_weights_K, 0)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two components in the plane."""
    factors_KDD = torch.randn(2, 2, 2, generator=generator, dtype=torch.float64)
    return {"weights_K": torch.tensor([0.3, 0.7], dtype=torch.float64),
            "means_KD": 2 * torch.randn(2, 2, generator=generator, dtype=torch.float64),
            "covariances_KDD": factors_KDD @ factors_KDD.mT + 0.3 * torch.eye(2, dtype=torch.float64)}
