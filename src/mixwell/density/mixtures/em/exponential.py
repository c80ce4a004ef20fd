"""Exponential families for EM: log densities linear in features, an M step from the features' weighted means.

B rows of a piece, P features, S starts, K components, C = S K.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.density._gaussian import TINY, log_positive
from mixwell.density.mixtures.em.kernels import rows_in_cache
from mixwell.density.mixtures.em.loop import Family, Params, Tally, with_fixed
from mixwell.density.mixtures.em.rows import Piece
from mixwell.kernels.linear import product_nt


class Sums(NamedTuple):
    """Weighted sums over rows (float64)."""

    count_SK: Tensor
    sums_SKP: Tensor


class ExponentialFamily(Family):
    """`log p(x | k) = natural_k . features(x) + constant_k + base(x)`."""

    feature_count: int

    def __init__(self, fixed: tuple[str, ...]) -> None:
        self.fixed = fixed

    @abstractmethod
    def features(self, x_BD: Tensor) -> Tensor:
        """Sufficient statistics (P, B), float64; missing values leave zeros."""

    @abstractmethod
    def natural(self, params: Params) -> tuple[Tensor, Tensor]:
        """Natural parameters (S, K, P) and log normalisers' negatives (S, K)."""

    @abstractmethod
    def update(self, sums: Sums, params: Params | None) -> Params:
        """Parameters other than the weights from weighted sums."""

    def base(self, x_BD: Tensor) -> Tensor | float:
        """Log base measure (B,)."""
        return 0.0

    def kernel(self, params: Params | None, level: Any) -> ExponentialKernel:
        return ExponentialKernel(self, params)

    def maximise(self, tally: Tally, params: Params | None, level: Any) -> Params:
        sums: Sums = tally.statistics
        total_S1 = sums.count_SK.sum(-1, keepdim=True)
        new = {"weights": sums.count_SK / total_S1}
        new |= self.update(sums, params)
        return with_fixed(self.fixed, new, params)


class ExponentialKernel:
    """Two matrix products a piece."""

    def __init__(self, family: ExponentialFamily, params: Params | None) -> None:
        self.family = family
        if params is not None:
            self.natural_SKP, constant_SK = family.natural(params)
            constant_SK = constant_SK + log_positive(params["weights"])
            self.constant_SK1 = constant_SK[..., None]

    def rows(self, starts_times_components: int) -> int:
        """Rows of a piece."""
        per_row = self.family.feature_count + starts_times_components
        return rows_in_cache(8 * per_row)

    def state(self, piece: Piece) -> Tensor:
        """phi (P, B)."""
        return self.family.features(piece.x_BD)

    def joint(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """phi, and log weight plus log density (S, K, B)."""
        S, K, P = self.natural_SKP.shape
        phi_PB = self.state(piece)
        natural_CP = self.natural_SKP.reshape(S * K, P)
        log_CB = product_nt(natural_CP, phi_PB.T)
        log_SKB = log_CB.view(S, K, -1)
        base_B = self.family.base(piece.x_BD)
        return phi_PB, log_SKB + self.constant_SK1 + base_B

    def tally(self, phi_PB: Tensor, resp_SKB: Tensor) -> Sums:
        """Weighted sums of the features."""
        S, K, B = resp_SKB.shape
        resp_CB = resp_SKB.reshape(S * K, B).to(phi_PB.dtype)
        sums_PC = product_nt(phi_PB, resp_CB)
        sums_SKP = sums_PC.T.reshape(S, K, -1)
        count_SK = resp_SKB.sum(-1)
        return Sums(count_SK, sums_SKP)


def share(numerator: Tensor, denominator: Tensor, otherwise: Tensor | float) -> Tensor:
    """A quotient, and something else where nothing was seen."""
    seen = denominator > TINY
    quotient = numerator / torch.where(seen, denominator, 1.0)
    return torch.where(seen, quotient, otherwise)
