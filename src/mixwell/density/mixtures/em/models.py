"""Covariance models: volumes, shapes and orientations that components share or have of their own.

A covariance is `volume * orientation diag(shape) orientation^T`, the shape's product one. A model's name has a letter
for each of the three: E where components share it, V where each has its own, I for spheres or the columns' own axes.
A step maximises `-sum_k n_k (log |Sigma_k| + tr(Sigma_k^-1 S_k))` with S_k a component's own second moments; what has
no closed form climbs from the old covariances, so that the likelihood never falls.

S starts, K components, D columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mixwell.density._gaussian import symmetric

CLIMBS = 4  # conditional maximisations of a step, where the maximum has no closed form
SWEEPS = 2  # of rotations over all pairs of axes in a step


class Own(NamedTuple):
    """Second moments of the components and their shares of the rows, with what a step starts from."""

    second: Tensor  # (S, K, D, D), (S, K, D) or (S, K), as the model's layout wants
    weight_SK: Tensor
    old: Tensor | None  # covariances
    orientation_SDD: Tensor | None


class Found(NamedTuple):
    """New covariances, and the orientation that all share where a model remembers it."""

    covariances: Tensor
    orientation_SDD: Tensor | None = None


def pooled(value: Tensor, weight_SK: Tensor) -> Tensor:
    """Mean over the components (S, 1, ...)."""
    axes = [1] * (value.ndim - 2)
    share_SK = weight_SK / weight_SK.sum(1, keepdim=True)
    share = share_SK.view(*share_SK.shape, *axes)
    return (value * share).sum(1, keepdim=True)


def geometric(value_SKD: Tensor) -> Tensor:
    """Geometric means (S, K, 1) over columns."""
    return value_SKD.log().mean(-1, keepdim=True).exp()


def root_of_determinant(matrix_SKDD: Tensor) -> Tensor:
    """|M|^(1/D) (S, K, 1, 1)."""
    D = matrix_SKDD.shape[-1]
    log_det_SK = torch.linalg.slogdet(matrix_SKDD).logabsdet
    return (log_det_SK / D).exp()[..., None, None]


def all_equal(own: Own) -> Found:
    """EII and EEI."""
    mean = pooled(own.second, own.weight_SK)
    return Found(mean.expand_as(own.second))


def equal_shape_axes(own: Own) -> Found:
    """VEI."""
    volume = geometric(own.second if own.old is None else own.old)
    for _ in range(CLIMBS):
        mean_S1D = pooled(own.second / volume, own.weight_SK)
        shape_S1D = mean_S1D / geometric(mean_S1D)
        volume = (own.second / shape_S1D).mean(-1, keepdim=True)
    return Found(volume * shape_S1D)


def equal_volume_axes(own: Own) -> Found:
    """EVI."""
    own_volume = geometric(own.second)
    volume = pooled(own_volume, own.weight_SK)
    return Found(volume * own.second / own_volume)


def equal_ellipses(own: Own) -> Found:
    """VEE."""
    volume = root_of_determinant(own.second if own.old is None else own.old)
    D = own.second.shape[-1]
    for _ in range(CLIMBS):
        mean_S1DD = pooled(own.second / volume, own.weight_SK)
        form_S1DD = mean_S1DD / root_of_determinant(mean_S1DD)
        inverse_S1DD = torch.linalg.inv(form_S1DD)
        trace_SK = (own.second * inverse_S1DD.mT).sum((-1, -2))
        volume = trace_SK[..., None, None] / D
    return Found(volume * form_S1DD)


def equal_volume(own: Own) -> Found:
    """EVV."""
    own_volume = root_of_determinant(own.second)
    volume = pooled(own_volume, own.weight_SK)
    return Found(volume * own.second / own_volume)


def turned(orientation_SKDD: Tensor, spread_SKD: Tensor) -> Tensor:
    """Matrices of these axes and spreads along them."""
    scaled_SKDD = orientation_SKDD * spread_SKD[..., None, :]
    return symmetric(scaled_SKDD @ orientation_SKDD.mT)


def equal_spread(own: Own) -> Found:
    """EEV."""
    spread_SKD, axes_SKDD = torch.linalg.eigh(own.second)
    mean_S1D = pooled(spread_SKD, own.weight_SK)
    return Found(turned(axes_SKDD, mean_S1D.expand_as(spread_SKD)))


def equal_shape(own: Own) -> Found:
    """VEV."""
    spread_SKD, axes_SKDD = torch.linalg.eigh(own.second)
    old_SKD = spread_SKD if own.old is None else torch.linalg.eigvalsh(own.old)
    found = equal_shape_axes(Own(spread_SKD, own.weight_SK, old_SKD, None))
    return Found(turned(axes_SKDD, found.covariances))


def common_axes(own: Own, spreads: Callable[[Own], Found]) -> Found:
    """EVE and VVE: one orientation, and spreads along it as in the model of given axes.

    Rotations in the plane of each pair of axes in turn, the best ones for given spreads; then the best spreads.
    """
    orientation_SDD = own.orientation_SDD
    if orientation_SDD is None:
        known = own.second if own.old is None else own.old  # whose axes are the old orientation
        pooled_S1DD = pooled(known, own.weight_SK)
        orientation_SDD = torch.linalg.eigh(pooled_S1DD[:, 0]).eigenvectors
    seen_SKDD = orientation_SDD.mT[:, None] @ own.second @ orientation_SDD[:, None]
    spread_SKD = _spreads(seen_SKDD, own.weight_SK, spreads)
    for _ in range(SWEEPS):
        turn_SDD = _rotations(seen_SKDD, own.weight_SK[..., None] / spread_SKD)
        orientation_SDD = orientation_SDD @ turn_SDD
        seen_SKDD = turn_SDD.mT[:, None] @ seen_SKDD @ turn_SDD[:, None]
        spread_SKD = _spreads(seen_SKDD, own.weight_SK, spreads)
    axes_SKDD = orientation_SDD[:, None].expand_as(own.second)
    return Found(turned(axes_SKDD, spread_SKD), orientation_SDD)


def _spreads(seen_SKDD: Tensor, weight_SK: Tensor, spreads: Callable[[Own], Found]) -> Tensor:
    diagonal_SKD = seen_SKDD.diagonal(dim1=-2, dim2=-1)
    return spreads(Own(diagonal_SKD, weight_SK, None, None)).covariances


def _rotations(seen_SKDD: Tensor, precision_SKD: Tensor) -> Tensor:
    """An orthogonal matrix (S, D, D) that lowers sum_k tr(diag(precision_k) R^T seen_k R), a plane at a time."""
    S, _, D, _ = seen_SKDD.shape
    seen_SKDD = seen_SKDD.clone()
    turn_SDD = torch.eye(D, dtype=seen_SKDD.dtype, device=seen_SKDD.device).repeat(S, 1, 1)
    for i, j in torch.triu_indices(D, D, 1).T.tolist():
        rotation_S22 = _best_rotation(seen_SKDD, precision_SKD, i, j)
        pair = [i, j]
        turn_SDD[:, :, pair] = turn_SDD[:, :, pair] @ rotation_S22
        seen_SKDD[:, :, :, pair] = seen_SKDD[:, :, :, pair] @ rotation_S22[:, None]
        seen_SKDD[:, :, pair] = rotation_S22.mT[:, None] @ seen_SKDD[:, :, pair]
    return turn_SDD


def _best_rotation(seen_SKDD: Tensor, precision_SKD: Tensor, i: int, j: int) -> Tensor:
    """The rotation (S, 2, 2) in the plane of axes i and j that lowers the sum most: cos and sin of twice its angle."""
    pull_SK = precision_SKD[..., i] - precision_SKD[..., j]
    gap_SK = seen_SKDD[..., i, i] - seen_SKDD[..., j, j]
    of_cosine_S = (pull_SK * gap_SK).sum(1) / 2
    of_sine_S = (pull_SK * seen_SKDD[..., i, j]).sum(1)
    angle_S = torch.atan2(-of_sine_S, -of_cosine_S) / 2
    cosine_S, sine_S = angle_S.cos(), angle_S.sin()
    first_S2 = torch.stack([cosine_S, sine_S], -1)
    second_S2 = torch.stack([-sine_S, cosine_S], -1)
    return torch.stack([first_S2, second_S2], -1)


def as_they_are(own: Own) -> Found:
    """VVV, VVI, VII and EEE, whose layouts are the models."""
    return Found(own.second)


MODELS: dict[str, Callable[[Own], Found]] = {
    "EII": all_equal, "EEI": all_equal, "VEI": equal_shape_axes, "EVI": equal_volume_axes,
    "VEE": equal_ellipses, "EVV": equal_volume, "EEV": equal_spread, "VEV": equal_shape,
    "EVE": lambda own: common_axes(own, equal_volume_axes), "VVE": lambda own: common_axes(own, as_they_are),
}


def free_numbers(model: str, K: int, D: int) -> int:
    """How many numbers the covariances of a model are free to choose."""
    volume, shape, orientation = tuple(model)
    times = {"E": 1, "V": K, "I": 0}
    shapes = times[shape] * (D - 1)
    angles = times[orientation] * D * (D - 1) // 2
    return times[volume] + shapes + angles
