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


class Moments(NamedTuple):
    """Sums over rows, weighted by responsibilities, about an origin that the kernel knows (float64).

    `second` is (S, K, D, D) for full covariances, (S, D, D) summed over components for tied ones, (S, K, D) for
    diagonal and (S, K) summed over columns for spherical ones.
    """

    count_SK: Tensor
    first_SKD: Tensor
    second: Tensor

    def __add__(self, other: Moments) -> Moments:  # type: ignore[override]
        return Moments(*(a + b for a, b in zip(self, other)))


def posterior(log_joint_SKB: Tensor) -> tuple[Tensor, Tensor]:
    """Responsibilities (S, K, B), and the log density of each row (S, B)."""
    resp_SKB = torch.softmax(log_joint_SKB, 1)
    # the largest responsibility is at least 1/K, so this logarithm is safe, and cheaper than a logsumexp
    return resp_SKB, log_joint_SKB.amax(1) - resp_SKB.amax(1).log()


def standardise(x_BD: Tensor, shift_D: Tensor, scale_D: Tensor, out_QB: Tensor) -> Tensor:
    """Rows as columns, shifted and scaled, under a first row of ones."""
    out_QB[0] = 1
    torch.sub(x_BD.T, shift_D[:, None], out=out_QB[1:]).mul_(scale_D[:, None])
    return out_QB


def feature_count(kind: str, columns: int) -> int:
    """P of a covariance type."""
    return {"full": (columns + 1) * (columns + 2) // 2, "tied": columns + 1, "diag": 2 * columns + 1,
            "spherical": columns + 2}[kind]


def natural_parameters(kind: str, log_weights_SK: Tensor, means_SKD: Tensor, cholesky: Tensor) -> Tensor:
    """W (S, K, P) with `log_joint = W phi`; for tied covariances without the term that the components share."""
    S, K, D = means_SKD.shape
    if kind in ("full", "tied"):
        root_SKDD = cholesky if kind == "full" else cholesky[:, None]
        white_SKD = (means_SKD[:, :, None] @ root_SKDD)[:, :, 0]
        linear_SKD = (root_SKDD @ white_SKD[..., None])[..., 0]
        log_det = log_diagonal(root_SKDD)
        precision_SKDD = root_SKDD @ root_SKDD.mT
    else:
        root_SKD = cholesky if kind == "diag" else cholesky[..., None].expand(S, K, D)
        white_SKD, precision_SKD, log_det = means_SKD * root_SKD, root_SKD**2, root_SKD.log().sum(-1)
        linear_SKD = means_SKD * precision_SKD
    constant_SK1 = (log_weights_SK + log_det - 0.5 * D * LOG_2PI - 0.5 * white_SKD.square().sum(-1))[..., None]
    if kind == "tied":
        return torch.cat([constant_SK1, linear_SKD], -1)
    if kind == "spherical":
        return torch.cat([constant_SK1, linear_SKD, -0.5 * precision_SKD[..., :1]], -1)
    if kind == "diag":
        return torch.cat([constant_SK1, linear_SKD, -0.5 * precision_SKD], -1)
    upper = torch.triu_indices(D, D, device=cholesky.device)
    doubled = torch.where(upper[0] == upper[1], 0.5, 1.0).to(means_SKD)  # z_i z_j stands once for both orders
    quadratic = -precision_SKDD[:, :, upper[0], upper[1]] * doubled
    joined = torch.cat([constant_SK1, linear_SKD], -1)
    return torch.cat([joined, quadratic], -1)


class Quadratic:
    """E and M on quadratic features of standardised rows; moments are about zero."""

    def __init__(self, kind: str, shift_D: Tensor, scale_D: Tensor, dtype: torch.dtype,
                 natural_SKP: Tensor | None = None, shared_root_SDD: Tensor | None = None) -> None:
        self.kind, self.shift_D, self.scale_D, self.dtype = kind, shift_D.to(dtype), scale_D.to(dtype), dtype
        self.scratch = Scratch()
        self.natural = None if natural_SKP is None else natural_SKP.to(dtype)
        self.root = None if shared_root_SDD is None else shared_root_SDD.to(dtype)
        D = len(shift_D)
        left, right = torch.triu_indices(D + 1, D + 1, device=shift_D.device)  # starts with (0, j): ones and z itself
        self.left, self.right = left, right

    def rows(self, starts_times_components: int) -> int:
        """Rows of a piece."""
        per_row = (feature_count(self.kind, len(self.shift_D)) + starts_times_components) * self.dtype.itemsize
        return max(64, min(8192, PIECE_BYTES // per_row))

    def features(self, x_BD: Tensor) -> Tensor:
        """phi (P, B)."""
        Q, B = x_BD.shape[1] + 1, len(x_BD)
        phi_PB = self.scratch.empty("phi", (feature_count(self.kind, Q - 1), B), self.shift_D)
        if self.kind != "full":
            z_QB = standardise(x_BD, self.shift_D, self.scale_D, phi_PB[:Q])
            if self.kind == "diag":
                torch.mul(z_QB[1:], z_QB[1:], out=phi_PB[Q:])
            elif self.kind == "spherical":
                torch.sum(z_QB[1:] * z_QB[1:], 0, out=phi_PB[Q])
            return phi_PB
        z_QB = standardise(x_BD, self.shift_D, self.scale_D, self.scratch.empty("z", (Q, B), self.shift_D))
        torch.index_select(z_QB, 0, self.left, out=phi_PB)
        right_PB = self.scratch.empty("right", tuple(phi_PB.shape), self.shift_D)
        return phi_PB.mul_(torch.index_select(z_QB, 0, self.right, out=right_PB))

    def joint(self, phi_PB: Tensor) -> Tensor:
        """Log weight plus log density (S, K, B)."""
        assert self.natural is not None
        S, K, P = self.natural.shape
        log_joint_SKB = product_nt(self.natural.view(S * K, P), phi_PB.T).view(S, K, -1)
        if self.root is not None:
            white_SDB = self.root.mT @ phi_PB[1:]
            log_joint_SKB -= 0.5 * white_SDB.square().sum(1, keepdim=True)
        return log_joint_SKB

    def moments(self, phi_PB: Tensor, resp_SKB: Tensor) -> Moments:
        """Weighted sums of the features."""
        S, K, B = resp_SKB.shape
        sums_SKP = product_nt(phi_PB, resp_SKB.reshape(S * K, B)).T.double().reshape(S, K, -1)
        D = len(self.shift_D)
        count_SK, first_SKD = sums_SKP[..., 0], sums_SKP[..., 1 : D + 1]
        if self.kind == "full":
            full = sums_SKP.new_empty(S, K, D, D)
            full[..., self.left[D + 1 :] - 1, self.right[D + 1 :] - 1] = sums_SKP[..., D + 1 :]
            full[..., self.right[D + 1 :] - 1, self.left[D + 1 :] - 1] = sums_SKP[..., D + 1 :]
            return Moments(count_SK, first_SKD, full)
        if self.kind == "tied":
            z_DB = phi_PB[1:]
            return Moments(count_SK, first_SKD, ((z_DB * resp_SKB.sum(1)[:, None]) @ z_DB.T).double())
        return Moments(count_SK, first_SKD, sums_SKP[..., D + 1 :] if self.kind == "diag" else sums_SKP[..., D + 1])


class Centred:
    """E and M about each component's own mean: exact differences first, then squares; moments are about the means."""

    def __init__(self, kind: str, shift_D: Tensor, scale_D: Tensor, dtype: torch.dtype,
                 log_weights_SK: Tensor, means_SKD: Tensor, cholesky: Tensor) -> None:
        self.kind, self.shift_D, self.scale_D, self.dtype = kind, shift_D.to(dtype), scale_D.to(dtype), dtype
        S, K, D = means_SKD.shape
        self.means_CD1 = means_SKD.reshape(S * K, D, 1).to(dtype)
        self.shape = (S, K)
        if kind in ("full", "tied"):
            full = cholesky if kind == "full" else cholesky[:, None].expand(S, K, D, D)
            self.root_CDD = full.reshape(S * K, D, D).to(dtype)
            log_det = log_diagonal(full)
        else:
            spread = cholesky if kind == "diag" else cholesky[..., None].expand(S, K, D)
            self.root_CD1 = spread.reshape(S * K, D, 1).to(dtype)
            log_det = spread.log().sum(-1)
        self.constant_SK1 = (log_weights_SK + log_det - 0.5 * D * LOG_2PI)[..., None].to(dtype)

    def rows(self, starts_times_components: int) -> int:
        """Rows of a piece."""
        return max(16, min(8192, (4 * PIECE_BYTES) // (self.dtype.itemsize * self.means_CD1.shape[1]
                                                       * starts_times_components)))

    def features(self, x_BD: Tensor) -> Tensor:
        """Differences to the means (C, D, B)."""
        z_QB = self.shift_D.new_empty(x_BD.shape[1] + 1, len(x_BD))
        return standardise(x_BD, self.shift_D, self.scale_D, z_QB)[1:] - self.means_CD1

    def joint(self, diff_CDB: Tensor) -> Tensor:
        """Log weight plus log density (S, K, B)."""
        white = self.root_CDD.mT @ diff_CDB if self.kind in ("full", "tied") else diff_CDB * self.root_CD1
        return self.constant_SK1 - 0.5 * white.square_().sum(1).view(*self.shape, -1)

    def moments(self, diff_CDB: Tensor, resp_SKB: Tensor) -> Moments:
        """Weighted sums of the differences and their squares."""
        (S, K, _), D = resp_SKB.shape, diff_CDB.shape[1]
        weighted_CDB = diff_CDB * resp_SKB.reshape(S * K, 1, -1)
        count_SK = resp_SKB.sum(-1).double()
        first_SKD = weighted_CDB.sum(-1).double().view(S, K, D)
        if self.kind in ("full", "tied"):
            second = (weighted_CDB @ diff_CDB.mT).double().view(S, K, D, D)
            return Moments(count_SK, first_SKD, second if self.kind == "full" else second.sum(1))
        squares_SKD = (weighted_CDB * diff_CDB).sum(-1).double().view(S, K, D)
        return Moments(count_SK, first_SKD, squares_SKD if self.kind == "diag" else squares_SKD.sum(-1))
