"""The normal distribution, once for all methods: log densities, roots, moments, conditioning, divergences.

What is arithmetic alone takes arrays and tensors as they come, and gives back the same kind. A root is a lower
Cholesky factor; its log determinant is half that of the covariance. N rows, D columns, K components.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
Values = TypeVar("Values", np.ndarray, Tensor)
LOG_2PI = math.log(2 * math.pi)
TINY = 1e-300  # what stands for a probability of zero where its logarithm must be finite


def log_normal(square: Values, log_scale: Any, columns: Any = 1) -> Values:
    """Log density (...) in nats.

    square: squared distances from the mean, in standard deviations (...); log_scale: log determinants of the roots;
    columns: D, or how many were observed.
    """
    return -0.5 * (square + columns * LOG_2PI) - log_scale


def log_prob(diff_ND: Values, covariance_DD: Values) -> Values:
    """Log densities (..., N) of centred normals at rows (..., N, D), one covariance (..., D, D) for all N."""
    root_DD = cholesky(covariance_DD)
    white_ND = whiten(diff_ND, root_DD)
    return log_normal((white_ND * white_ND).sum(-1), log_diagonal(root_DD)[..., None], diff_ND.shape[-1])


def cholesky(covariances: Values) -> Values:
    """Lower roots (..., D, D), or a `ValueError` that names the component whose covariance has none."""
    if isinstance(covariances, np.ndarray):
        return np.linalg.cholesky(covariances)
    lower, info = torch.linalg.cholesky_ex(covariances)
    if bool((info != 0).any()):
        raise ValueError(f"covariance {info.nonzero()[0].tolist()} is not positive definite; add to its diagonal.")
    return lower


def log_diagonal(root: Values) -> Values:
    """Log determinants (...) of triangular matrices (..., D, D)."""
    if isinstance(root, np.ndarray):
        return np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(-1)
    return root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def whiten(diff_ND: Values, root_DD: Values) -> Values:
    """Rows (..., N, D) in standard deviations: root^-1 applied to each."""
    if isinstance(diff_ND, np.ndarray):
        return np.linalg.solve(root_DD, diff_ND.swapaxes(-1, -2)).swapaxes(-1, -2)
    return torch.linalg.solve_triangular(root_DD, diff_ND.mT, upper=False).mT


def gain(cross_UO: Values, seen_OO: Values) -> Values:
    """S_uo S_oo^-1 (..., U, O): what a unit of a seen coordinate moves the others by."""
    if isinstance(cross_UO, np.ndarray):
        return np.linalg.solve(seen_OO, cross_UO.swapaxes(-1, -2)).swapaxes(-1, -2)
    return torch.cholesky_solve(cross_UO.mT, cholesky(seen_OO)).mT


def outer(a: Values, b: Values) -> Values:
    """Products (..., D, E) of every entry of a (..., D) with every one of b (..., E)."""
    down, across = a[..., :, None], b[..., None, :]
    return down * across


def symmetric(matrices: Values) -> Values:
    """Rounding differences between the halves taken away."""
    return 0.5 * (matrices + matrices.swapaxes(-1, -2))


def moments(share_K: Values, means_KD: Values, covariances_KDD: Values) -> tuple[Values, Values]:
    """Mean (D,) and covariance (D, D) of a mixture whose weights sum to one: within plus between components."""
    mean_D = share_K @ means_KD
    gap_KD = means_KD - mean_D
    spread_KDD = covariances_KDD + outer(gap_KD, gap_KD)
    return mean_D, (share_K[:, None, None] * spread_KDD).sum(0)


def divergence(square: Values, log_ratio: Values, columns: int = 1) -> Values:
    """KL divergence (...) of one normal from another, in nats.

    square: mean squared distance of the first from the second's mean, in the second's standard deviations; log_ratio:
    log determinant of the second's covariance less that of the first's.
    """
    return 0.5 * (square - columns + log_ratio)


def log_positive(values: Values) -> Values:
    """Logarithms that are finite at zero."""
    if isinstance(values, np.ndarray):
        return np.log(np.maximum(values, TINY))
    return values.clamp(min=TINY).log()


def log_weights(weights: Tensor) -> Tensor:
    """Logarithms, -inf at zero, with finite gradients there."""
    there = weights > 0
    return torch.where(there, torch.where(there, weights, 1.0).log(), -torch.inf)
