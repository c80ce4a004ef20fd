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
from mixwell.density._gaussian import cholesky, gain, log_prob, log_weights, moments, outer, symmetric

ASYMMETRY = 1e-4  # of the two standard deviations: far above the rounding of single precision


@dataclass(frozen=True, kw_only=True)
class Config:
    """A value has no option: its parameters are its fields."""


@method(title="Gaussian mixture as a value", year=2003, tags={"value", "density", "differentiable", "relabel"})
@dataclass(frozen=True, eq=False)
class GaussianMixtureDensity:
    """A normalised Gaussian mixture. weights_K sum to one; covariances_KDD are symmetric positive definite.

    `ValueError` where they are not, or their shapes do not fit.
    """

    weights_K: Tensor
    means_KD: Tensor
    covariances_KDD: Tensor

    def __post_init__(self) -> None:
        for name in ("weights_K", "means_KD", "covariances_KDD"):
            value = torch.as_tensor(getattr(self, name), dtype=torch.float64)
            object.__setattr__(self, name, value)
        K, D = self.means_KD.shape if self.means_KD.ndim == 2 else (0, 0)
        if K == 0 or self.weights_K.shape != (K,) or self.covariances_KDD.shape != (K, D, D):
            raise ValueError(f"got weights {tuple(self.weights_K.shape)}, means {tuple(self.means_KD.shape)}, "
                             f"covariances {tuple(self.covariances_KDD.shape)}; expected (K,), (K, D), (K, D, D).")
        for name in ("means_KD", "covariances_KDD"):
            finite = getattr(self, name).isfinite()
            if not bool(finite.all()):
                raise ValueError(f"{name} holds NaN or infinity; expected finite numbers.")
        _check_symmetric(self.covariances_KDD.detach())
        _check_weights(self.weights_K.detach())

    @classmethod
    def from_estimator(cls, model: Any) -> GaussianMixtureDensity:
        """The density of a fitted `GaussianMixture` of any covariance type (scikit-learn's too)."""
        weights_K = torch.as_tensor(model.weights_, dtype=torch.float64)
        means_KD = torch.as_tensor(model.means_, dtype=torch.float64)
        covariances = torch.as_tensor(model.covariances_, dtype=torch.float64)
        full_1KDD = as_full(model.covariance_type, covariances[None], means_KD[None])
        return cls(
            weights_K=weights_K / weights_K.sum(),
            means_KD=means_KD,
            covariances_KDD=full_1KDD[0],
        )

    @property
    def dim(self) -> int:
        """D."""
        return self.means_KD.shape[1]

    def log_joint(self, x_ND: Tensor) -> Tensor:
        """Log weight plus log density of each component (N, K); a `ValueError` for x of another width."""
        diff_KND = self._differences(x_ND).transpose(0, 1)
        log_KN = log_prob(diff_KND, self.covariances_KDD)
        return log_weights(self.weights_K) + log_KN.T

    def log_prob(self, x_ND: Tensor) -> Tensor:
        """Log density (N,), in nats."""
        return torch.logsumexp(self.log_joint(x_ND), 1)

    def responsibilities(self, x_ND: Tensor) -> Tensor:
        """Posterior probability of each component (N, K)."""
        return torch.softmax(self.log_joint(x_ND), 1)

    def score(self, x_ND: Tensor) -> Tensor:
        """Gradient of the log density (N, D), exact; `ValueError` for another width."""
        back_NKD = -self._differences(x_ND)
        root_KDD = cholesky(self.covariances_KDD)
        pull_NKD1 = torch.cholesky_solve(back_NKD[..., None], root_KDD)
        pull_NKD = pull_NKD1[..., 0]
        resp_NK = self.responsibilities(x_ND)
        weighted_NKD = resp_NK[..., None] * pull_NKD
        return weighted_NKD.sum(1)

    def mean(self) -> Tensor:
        """Mean (D,)."""
        return self.weights_K @ self.means_KD

    def covariance(self) -> Tensor:
        """Covariance (D, D): within plus between components."""
        _, covariance_DD = moments(self.weights_K, self.means_KD, self.covariances_KDD)
        return covariance_DD

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows (count, D) and the components they come from (count,)."""
        means_KD = self.means_KD
        labels_N = torch.multinomial(self.weights_K, count, replacement=True, generator=generator)
        noise_ND = torch.randn(count, self.dim, generator=generator, dtype=torch.float64, device=means_KD.device)
        root_KDD = cholesky(self.covariances_KDD)
        root_NDD = root_KDD[labels_N]
        about_ND1 = root_NDD @ noise_ND[..., None]
        about_ND = about_ND1[..., 0]
        return means_KD[labels_N] + about_ND, labels_N

    def affine(self, matrix_ED: Tensor, shift_E: Tensor | float = 0.0) -> GaussianMixtureDensity:
        """Density of A x + b; the rows of A (E, D) must be independent. A `ValueError` for another width."""
        matrix_ED = torch.as_tensor(matrix_ED, dtype=torch.float64)
        shape = tuple(matrix_ED.shape)
        if len(shape) != 2 or shape[1] != self.dim:
            raise ValueError(f"got a matrix of shape {shape}; expected (E, {self.dim}).")
        means_KE = self.means_KD @ matrix_ED.T
        across_KED = matrix_ED @ self.covariances_KDD
        covariances_KEE = symmetric(across_KED @ matrix_ED.T)
        return GaussianMixtureDensity(self.weights_K, means_KE + shift_E, covariances_KEE)

    def marginal(self, keep: Sequence[int]) -> GaussianMixtureDensity:
        """Density of some coordinates, in the order given; `keep` may also be D truth values.

        Raises a `ValueError` for coordinates that are not there, repeat, or are none.
        """
        kept = self._coordinates(keep)
        return GaussianMixtureDensity(self.weights_K, self.means_KD[:, kept], self._block(kept, kept))

    def condition(self, known: Sequence[int], values: Tensor) -> GaussianMixtureDensity:
        """Density of the other coordinates, given `values` of the known ones (or D truth values which are known).

        Raises a `ValueError` for coordinates that are not there, repeat, are none or all; for values that are not as
        many or not finite, or lie where the density is zero in double precision.
        """
        o = self._coordinates(known)
        u = self._others(o)
        values_O = torch.as_tensor(values, dtype=torch.float64)
        if values_O.shape != o.shape:
            raise ValueError(f"got values of shape {tuple(values_O.shape)}; expected ({len(o)},), one for each known "
                             "coordinate.")
        if not bool(values_O.isfinite().all()):
            raise ValueError(f"got values {values_O.tolist()}; expected finite numbers.")
        diff_KO = values_O - self.means_KD[:, o]
        seen_KOO = self._block(o, o)
        cross_KUO = self._block(u, o)
        gain_KUO = gain(cross_KUO, seen_KOO)
        log_seen_K1 = log_prob(diff_KO[:, None], seen_KOO)
        log_weights_K = log_weights(self.weights_K) + log_seen_K1[:, 0]
        rest_KUU = self._block(u, u) - gain_KUO @ cross_KUO.mT
        moved_KU1 = gain_KUO @ diff_KO[..., None]
        means_KU = self.means_KD[:, u] + moved_KU1[..., 0]
        return GaussianMixtureDensity(shares(log_weights_K), means_KU, symmetric(rest_KUU))

    def _block(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Covariances of some coordinates with others."""
        return self.covariances_KDD[:, rows[:, None], columns]

    def _others(self, known: Tensor) -> Tensor:
        """The coordinates that are not among these."""
        left = sorted(set(range(self.dim)) - set(known.tolist()))
        if not left:
            raise ValueError("every coordinate is known; expected at least one to be left.")
        return torch.tensor(left, dtype=torch.long)

    def product(self, other: GaussianMixtureDensity) -> tuple[GaussianMixtureDensity, Tensor]:
        """Normalised product of the two densities (K_1 K_2 components), and log of the integral of the product.

        Raises a `ValueError` for another dimension, or where the product is zero in double precision.
        """
        weights_P, m_PD, s_PDD, n_PD, t_PDD = self._pairs(other)
        both_PDD = s_PDD + t_PDD
        gap_PD = m_PD - n_PD
        log_overlap_P1 = log_prob(gap_PD[:, None], both_PDD)
        log_weights_P = log_weights(weights_P) + log_overlap_P1[:, 0]
        gain_PDD = gain(s_PDD, both_PDD)
        back_PD = n_PD - m_PD
        moved_PD1 = gain_PDD @ back_PD[..., None]
        density = GaussianMixtureDensity(
            weights_K=shares(log_weights_P),
            means_KD=m_PD + moved_PD1[..., 0],
            covariances_KDD=symmetric(gain_PDD @ t_PDD),
        )
        return density, torch.logsumexp(log_weights_P, 0)

    def convolve(self, other: GaussianMixtureDensity) -> GaussianMixtureDensity:
        """Density of the sum of independent draws (K_1 K_2 components); `ValueError` for another dimension."""
        weights_P, m_PD, s_PDD, n_PD, t_PDD = self._pairs(other)
        return GaussianMixtureDensity(weights_P, m_PD + n_PD, s_PDD + t_PDD)

    def _coordinates(self, wanted: Sequence[int]) -> Tensor:
        kept = torch.as_tensor(wanted)
        if kept.dtype == torch.bool and kept.shape == (self.dim,):
            kept = kept.nonzero()[:, 0]
        names = kept.tolist()
        numbers = not (kept.dtype == torch.bool or kept.is_floating_point() or kept.is_complex())
        if kept.ndim != 1 or not numbers or not self._different(names):
            raise ValueError(f"got coordinates {names}; expected different whole numbers from 0 to {self.dim - 1}, or "
                             f"{self.dim} truth values, one of them true.")
        return kept.long()

    def _different(self, names: list[int]) -> bool:
        """Whether these are coordinates, one or more, none twice."""
        distinct = set(names)
        if not names or len(distinct) < len(names):
            return False
        return distinct <= set(range(self.dim))

    def _differences(self, x_ND: Tensor) -> Tensor:
        """x minus the means (N, K, D)."""
        shape = tuple(x_ND.shape)
        if len(shape) != 2 or shape[1] != self.dim:
            raise ValueError(f"got x of shape {shape}; expected (N, {self.dim}).")
        return x_ND[:, None] - self.means_KD

    def _pairs(self, other: GaussianMixtureDensity) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Weights, and means and covariances of both, of all pairs of components."""
        if self.dim != other.dim:
            raise ValueError(f"the mixtures have {self.dim} and {other.dim} dimensions; expected the same.")
        K, L = len(self.weights_K), len(other.weights_K)
        i = torch.arange(K).repeat_interleave(L)
        j = torch.arange(L).repeat(K)
        weights_P = self.weights_K[i] * other.weights_K[j]
        m_PD, s_PDD = self.means_KD[i], self.covariances_KDD[i]
        n_PD, t_PDD = other.means_KD[j], other.covariances_KDD[j]
        return weights_P, m_PD, s_PDD, n_PD, t_PDD


def _check_symmetric(covariances_KDD: Tensor) -> None:
    diagonal_KD = covariances_KDD.diagonal(dim1=1, dim2=2)
    scale_KD = diagonal_KD.abs().sqrt()
    gap_KDD = covariances_KDD - covariances_KDD.mT
    tolerated_KDD = ASYMMETRY * outer(scale_KD, scale_KD)
    uneven_KDD = gap_KDD.abs() > tolerated_KDD
    if bool(uneven_KDD.any()):
        first = int(uneven_KDD.nonzero()[0, 0])
        raise ValueError(f"covariance [{first}] is not symmetric.")


def _check_weights(weights_K: Tensor) -> None:
    total = float(weights_K.sum())
    negative = bool((weights_K < 0).any())
    whole = abs(total - 1) <= 1e-6
    if negative or not whole:
        raise ValueError(f"weights must not be negative and must sum to 1, got a sum of {total:.6f}.")


def shares(log_weights_K: Tensor) -> Tensor:
    """Weights that sum to one, or a `ValueError` where all are zero in double precision."""
    if bool(log_weights_K.isneginf().all()):
        raise ValueError("the density there is zero in double precision; expected a place that some component reaches.")
    return torch.softmax(log_weights_K, 0)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two components in the plane."""
    factors_KDD = torch.randn(2, 2, 2, generator=generator, dtype=torch.float64)
    means_KD = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    squares_KDD = factors_KDD @ factors_KDD.mT
    eye_DD = torch.eye(2, dtype=torch.float64)
    return {
        "weights_K": torch.tensor([0.3, 0.7], dtype=torch.float64),
        "means_KD": 2 * means_KD,
        "covariances_KDD": squares_KDD + 0.3 * eye_DD,
    }
