"""Fast E and M steps of Gaussian mixtures: two matrix products on quadratic features, or the centred way.

A log density of a Gaussian is linear in the features `phi = [1, z_i, z_i z_j (i <= j)]`, so one product gives all
log densities of a piece (E), and one product with the responsibilities gives all sums that the M step needs. Expanding
the square loses digits when a component is much narrower than the data; the centred kernel subtracts first, costs
more, and keeps them.

B rows of a piece, D columns, Q = D + 1, P features, S starts, K components, C = S K.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mixwell.density._gaussian import LOG_2PI, log_diagonal
from mixwell.density.mixtures.em.workers import Scratch
from mixwell.kernels.linear import product_nt

PIECE_BYTES = 5 << 19  # features of one piece: they must stay in the caches between the E and the M product
WIDEST = 4096  # with more features than this, the centred kernel's products are the better shaped ones
MATRICES = ("full", "tied")  # types whose covariances are matrices


class Moments(NamedTuple):
    """Sums over rows, weighted by responsibilities, about an origin that the kernel knows (float64).

    `second` is (S, K, D, D) for full covariances, (S, D, D) summed over components for tied ones, (S, K, D) for
    diagonal and (S, K) summed over columns for spherical ones.
    """

    count_SK: Tensor
    first_SKD: Tensor
    second: Tensor

    def __add__(self, other: Moments) -> Moments:  # type: ignore[override]
        count_SK = self.count_SK + other.count_SK
        first_SKD = self.first_SKD + other.first_SKD
        return Moments(count_SK, first_SKD, self.second + other.second)


def posterior(log_joint_SKB: Tensor) -> tuple[Tensor, Tensor]:
    """Responsibilities (S, K, B), and the log density of each row (S, B)."""
    resp_SKB = torch.softmax(log_joint_SKB, 1)
    # the largest responsibility is at least 1/K, so this logarithm is safe, and cheaper than a logsumexp
    log_top_SB = resp_SKB.amax(1).log()
    return resp_SKB, log_joint_SKB.amax(1) - log_top_SB


def standardise(x_BD: Tensor, shift_D: Tensor, scale_D: Tensor, out_QB: Tensor) -> Tensor:
    """Rows as columns, shifted and scaled, under a first row of ones."""
    out_QB[0] = 1
    z_DB = out_QB[1:]
    torch.sub(x_BD.T, shift_D[:, None], out=z_DB)
    z_DB.mul_(scale_D[:, None])
    return out_QB


def feature_count(kind: str, columns: int) -> int:
    """P of a covariance type."""
    linear = columns + 1
    if kind == "full":
        return linear * (linear + 1) // 2
    squares = {"tied": 0, "diag": columns, "spherical": 1}
    return linear + squares[kind]


def rows_in_cache(bytes_per_row: int, budget: int = PIECE_BYTES, least: int = 64) -> int:
    """Rows of a piece whose features fit a budget of bytes."""
    fitting = budget // bytes_per_row
    return max(least, min(8192, fitting))


def natural_parameters(kind: str, log_weights_SK: Tensor, means_SKD: Tensor, cholesky: Tensor) -> Tensor:
    """W (S, K, P) with `log_joint = W phi`; for tied covariances without the term that the components share."""
    D = means_SKD.shape[-1]
    if kind in MATRICES:
        root_SKDD = cholesky if kind == "full" else cholesky[:, None]
        white_SKD = (means_SKD[:, :, None] @ root_SKDD)[:, :, 0]
        linear_SKD = (root_SKDD @ white_SKD[..., None])[..., 0]
        log_scale = log_diagonal(root_SKDD)
        squares = [_quadratic_terms(root_SKDD)] if kind == "full" else []
    else:
        root_SKD = cholesky if kind == "diag" else cholesky[..., None].expand_as(means_SKD)
        white_SKD = means_SKD * root_SKD
        linear_SKD = white_SKD * root_SKD
        log_scale = root_SKD.log().sum(-1)
        own_SKD = root_SKD if kind == "diag" else root_SKD[..., :1]
        squares = [-0.5 * own_SKD**2]
    length_SK = white_SKD.square().sum(-1)
    below_SK = 0.5 * (D * LOG_2PI + length_SK)
    constant_SK = log_weights_SK + log_scale - below_SK
    return torch.cat([constant_SK[..., None], linear_SKD, *squares], -1)


def _quadratic_terms(root_SKDD: Tensor) -> Tensor:
    """Coefficients (S, K, D (D + 1) / 2) of z_i z_j, i <= j, which stands once for both orders."""
    D = root_SKDD.shape[-1]
    precision_SKDD = root_SKDD @ root_SKDD.mT
    i, j = torch.triu_indices(D, D, device=root_SKDD.device)
    upper_SKP = precision_SKDD[:, :, i, j]
    halved_P = torch.where(i == j, 0.5, 1.0).to(root_SKDD)
    return -upper_SKP * halved_P


class Quadratic:
    """E and M on quadratic features of standardised rows; moments are about zero."""

    def __init__(self, kind: str, shift_D: Tensor, scale_D: Tensor, dtype: torch.dtype,
                 natural_SKP: Tensor | None = None, shared_root_SDD: Tensor | None = None) -> None:
        self.kind, self.dtype = kind, dtype
        self.shift_D = shift_D.to(dtype)
        self.scale_D = scale_D.to(dtype)
        self.natural = None if natural_SKP is None else natural_SKP.to(dtype)
        self.root = None if shared_root_SDD is None else shared_root_SDD.to(dtype)
        Q = len(shift_D) + 1
        self.pairs = torch.triu_indices(Q, Q, device=shift_D.device)  # starts with (0, j): ones and z itself
        self.scratch = Scratch()

    def rows(self, starts_times_components: int) -> int:
        """Rows of a piece."""
        features = feature_count(self.kind, len(self.shift_D))
        per_row = features + starts_times_components
        return rows_in_cache(per_row * self.dtype.itemsize)

    def features(self, x_BD: Tensor) -> Tensor:
        """phi (P, B)."""
        B, D = x_BD.shape
        P = feature_count(self.kind, D)
        phi_PB = self.scratch.empty("phi", (P, B), self.shift_D)
        if self.kind == "full":
            return self._products(x_BD, phi_PB)
        linear_QB, squares_PB = phi_PB[: D + 1], phi_PB[D + 1 :]
        standardise(x_BD, self.shift_D, self.scale_D, linear_QB)
        z_DB = linear_QB[1:]
        if self.kind == "diag":
            torch.mul(z_DB, z_DB, out=squares_PB)
        elif self.kind == "spherical":
            torch.sum(z_DB * z_DB, 0, out=squares_PB[0])
        return phi_PB

    def _products(self, x_BD: Tensor, phi_PB: Tensor) -> Tensor:
        """Fill phi with the products of all pairs of a one and the columns."""
        B, D = x_BD.shape
        left_P, right_P = self.pairs
        z_QB = self.scratch.empty("z", (D + 1, B), self.shift_D)
        standardise(x_BD, self.shift_D, self.scale_D, z_QB)
        right_PB = self.scratch.empty("right", (len(right_P), B), self.shift_D)
        torch.index_select(z_QB, 0, left_P, out=phi_PB)
        torch.index_select(z_QB, 0, right_P, out=right_PB)
        return phi_PB.mul_(right_PB)

    def joint(self, phi_PB: Tensor) -> Tensor:
        """Log weight plus log density (S, K, B)."""
        assert self.natural is not None
        S, K, P = self.natural.shape
        natural_CP = self.natural.view(S * K, P)
        log_joint_CB = product_nt(natural_CP, phi_PB.T)
        log_joint_SKB = log_joint_CB.view(S, K, -1)
        if self.root is not None:
            white_SDB = self.root.mT @ phi_PB[1:]
            distance_S1B = white_SDB.square().sum(1, keepdim=True)
            log_joint_SKB -= 0.5 * distance_S1B
        return log_joint_SKB

    def moments(self, phi_PB: Tensor, resp_SKB: Tensor) -> Moments:
        """Weighted sums of the features."""
        S, K, B = resp_SKB.shape
        D = len(self.shift_D)
        resp_CB = resp_SKB.reshape(S * K, B)
        sums_PC = product_nt(phi_PB, resp_CB)
        sums_CP = sums_PC.T.double()
        sums_SKP = sums_CP.reshape(S, K, -1)
        squares = sums_SKP[..., D + 1 :]
        if self.kind == "full":
            squares = self._both_halves(squares)
        elif self.kind == "tied":
            squares = self._shared_second(phi_PB[1:], resp_SKB)
        elif self.kind == "spherical":
            squares = squares[..., 0]
        count_SK, first_SKD = sums_SKP[..., 0], sums_SKP[..., 1 : D + 1]
        return Moments(count_SK, first_SKD, squares)

    def _both_halves(self, upper_SKP: Tensor) -> Tensor:
        """Symmetric matrices (S, K, D, D) from their upper halves."""
        S, K, _ = upper_SKP.shape
        D = len(self.shift_D)
        quadratic = self.pairs[:, D + 1 :]
        i, j = quadratic - 1
        full_SKDD = upper_SKP.new_empty(S, K, D, D)
        full_SKDD[..., i, j] = upper_SKP
        full_SKDD[..., j, i] = upper_SKP
        return full_SKDD

    def _shared_second(self, z_DB: Tensor, resp_SKB: Tensor) -> Tensor:
        """Second moments (S, D, D) summed over components."""
        weight_S1B = resp_SKB.sum(1)[:, None]
        return ((z_DB * weight_S1B) @ z_DB.T).double()


class Centred:
    """E and M about each component's own mean: exact differences first, then squares; moments are about the means."""

    def __init__(self, kind: str, shift_D: Tensor, scale_D: Tensor, dtype: torch.dtype,
                 log_weights_SK: Tensor, means_SKD: Tensor, cholesky: Tensor) -> None:
        S, K, D = means_SKD.shape
        self.kind, self.dtype, self.shape = kind, dtype, (S, K)
        self.shift_D = shift_D.to(dtype)
        self.scale_D = scale_D.to(dtype)
        self.means_CD1 = means_SKD.reshape(S * K, D, 1).to(dtype)
        if kind in MATRICES:
            root_SKDD = cholesky if kind == "full" else cholesky[:, None].expand(S, K, D, D)
            self.root_CDD = root_SKDD.reshape(S * K, D, D).to(dtype)
            log_scale_SK = log_diagonal(root_SKDD)
        else:
            root_SKD = cholesky if kind == "diag" else cholesky[..., None].expand(S, K, D)
            self.root_CD1 = root_SKD.reshape(S * K, D, 1).to(dtype)
            log_scale_SK = root_SKD.log().sum(-1)
        log_peak_SK = log_scale_SK + log_weights_SK
        constant_SK = log_peak_SK - 0.5 * D * LOG_2PI
        self.constant_SK1 = constant_SK[..., None].to(dtype)

    def rows(self, starts_times_components: int) -> int:
        """Rows of a piece."""
        differences = self.means_CD1.shape[1] * starts_times_components
        return rows_in_cache(differences * self.dtype.itemsize, 4 * PIECE_BYTES, least=16)

    def features(self, x_BD: Tensor) -> Tensor:
        """Differences to the means (C, D, B)."""
        B, D = x_BD.shape
        z_QB = self.shift_D.new_empty(D + 1, B)
        standardise(x_BD, self.shift_D, self.scale_D, z_QB)
        z_DB = z_QB[1:]
        return z_DB - self.means_CD1

    def joint(self, diff_CDB: Tensor) -> Tensor:
        """Log weight plus log density (S, K, B)."""
        if self.kind in MATRICES:
            white_CDB = self.root_CDD.mT @ diff_CDB
        else:
            white_CDB = diff_CDB * self.root_CD1
        square_CB = white_CDB.square_().sum(1)
        return self.constant_SK1 - 0.5 * square_CB.view(*self.shape, -1)

    def moments(self, diff_CDB: Tensor, resp_SKB: Tensor) -> Moments:
        """Weighted sums of the differences and their squares."""
        S, K, B = resp_SKB.shape
        D = diff_CDB.shape[1]
        weight_C1B = resp_SKB.reshape(S * K, 1, B)
        weighted_CDB = diff_CDB * weight_C1B
        first_CD = weighted_CDB.sum(-1).double()
        if self.kind in MATRICES:
            second = (weighted_CDB @ diff_CDB.mT).double().view(S, K, D, D)
            second = second if self.kind == "full" else second.sum(1)
        else:
            second = (weighted_CDB * diff_CDB).sum(-1).double().view(S, K, D)
            second = second if self.kind == "diag" else second.sum(-1)
        count_SK = resp_SKB.sum(-1).double()
        return Moments(count_SK, first_CD.view(S, K, D), second)
