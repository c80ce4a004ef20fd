"""Covariances of the four types: roots, inverses, and one type as another.

S starts, K components, D columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

# What a covariance model is kept as, by its name in the literature: letters for volume, shape and orientation.
LAYOUTS = {"full": "full", "tied": "tied", "diag": "diag", "spherical": "spherical",
           "EII": "spherical", "VII": "spherical", "EEI": "diag", "VEI": "diag", "EVI": "diag", "VVI": "diag",
           "EEE": "tied", "VEE": "full", "EVE": "full", "VVE": "full", "EEV": "full", "VEV": "full", "EVV": "full",
           "VVV": "full"}
LETTERS = {"full": "VVV", "tied": "EEE", "diag": "VVI", "spherical": "VII"}  # the same models by our names
# Models that mean another thing when a column is measured in other units.
BOUND_TO_UNITS = ("spherical", "EII", "VII", "EVE", "VVE", "EEV", "VEV")


def precision_cholesky(kind: str, covariances: Tensor) -> Tensor:
    """Roots of the precisions; NaN where a covariance is not positive definite."""
    if kind in ("diag", "spherical"):
        return torch.where(covariances > 0, covariances, torch.nan).rsqrt()
    lower, info = torch.linalg.cholesky_ex(covariances)
    eye = torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
    root = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False).mT
    return torch.where((info == 0)[..., None, None], root, torch.nan)


def root_of_precision(kind: str, precisions: Tensor) -> Tensor:
    """Upper-triangular U with U U^T = precision (the square root where precisions are numbers)."""
    if kind in ("diag", "spherical"):
        return precisions.sqrt()
    return torch.linalg.cholesky(precisions.flip(-1, -2)).flip(-1, -2)


def inverse_of_root(kind: str, root: Tensor) -> Tensor:
    """Covariances from the roots of their precisions."""
    if kind in ("diag", "spherical"):
        return root**-2
    eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    lower = torch.linalg.solve_triangular(root.triu(), eye.expand_as(root), upper=True).mT
    return lower @ lower.mT


def as_full(kind: str, covariances: Tensor, means_SKD: Tensor) -> Tensor:
    """Covariances of any type or model as matrices (S, K, D, D)."""
    S, K, D = means_SKD.shape
    kind = LAYOUTS[kind]
    if kind == "full":
        return covariances
    if kind == "tied":
        return covariances[:, None].expand(S, K, D, D)
    if kind == "spherical":
        covariances = covariances[..., None].expand(S, K, D)
    return torch.diag_embed(covariances)


def squeezed(kind: str, second_SKDD: Tensor) -> Tensor:
    """Second moments in the shape that a type needs."""
    if kind == "full":
        return second_SKDD
    if kind == "tied":
        return second_SKDD.sum(1)
    diagonal_SKD = second_SKDD.diagonal(dim1=-2, dim2=-1)
    return diagonal_SKD if kind == "diag" else diagonal_SKD.sum(-1)
