"""Which columns tell the components apart: how much of the doubt about a row's component each one takes away alone.

N rows, D columns, K components.
"""

from __future__ import annotations

import numpy as np

from mixwell.density.mixtures.product import Block
from mixwell.tables.describe import Normal, count_moments, normal
from mixwell.tables.kinds import CATEGORY, COUNT
from mixwell.tables.model import FittedMixture

MOST_ROWS = 5000


def information(fitted: FittedMixture, x_ND: np.ndarray) -> np.ndarray:
    """Share (D,) of the components' entropy that each column alone removes, 0 to 1; zeros with one component.

    From the marginal density of the column in every component, as Bayes' rule weighs it, on the rows that have it.
    """
    weights_K = np.asarray(fitted.estimator.weights_)
    D = x_ND.shape[1]
    if len(weights_K) == 1:
        return np.zeros(D)
    before = _entropy(weights_K[None])[0]
    stride = max(1, len(x_ND) // MOST_ROWS)
    rows_ND = x_ND[::stride]
    share_D = np.empty(D)
    for place, x_N in enumerate(rows_ND.T):
        share_D[place] = _removed(fitted, place, x_N, weights_K, before)
    return share_D


def _removed(fitted: FittedMixture, place: int, x_N: np.ndarray, weights_K: np.ndarray, before: float) -> float:
    seen = x_N[~np.isnan(x_N)]
    if not len(seen):
        return 0.0
    log_NK = _alone(fitted, place, seen) + np.log(np.maximum(weights_K, 1e-300))
    resp_NK = np.exp(log_NK - log_NK.max(1, keepdims=True))
    resp_NK /= resp_NK.sum(1, keepdims=True)
    after = float(_entropy(resp_NK).mean())
    return max(1 - after / before, 0.0)


def _entropy(share_NK: np.ndarray) -> np.ndarray:
    log_NK = np.log(np.maximum(share_NK, 1e-300))
    return -np.sum(share_NK * log_NK, 1)


def _alone(fitted: FittedMixture, place: int, x_N: np.ndarray) -> np.ndarray:
    """Log density (N, K) of one column's values in every component, up to a term that all components share."""
    block = next(block for block in fitted.estimator.blocks_ if place in block.columns)
    own = block.columns.index(place)
    if block.kind == CATEGORY:
        shares_KC = np.asarray(block.estimator.probabilities_[own])
        codes_N = x_N.astype(int)
        return np.log(np.maximum(shares_KC.T[codes_N], 1e-300))
    if block.kind == COUNT:
        return _of_counts(block, own, x_N)
    numeric = normal(fitted)
    assert numeric is not None
    return _of_numbers(numeric, own, x_N)


def _of_counts(block: Block, own: int, x_N: np.ndarray) -> np.ndarray:
    """Poisson, or negative binomial where the block has sizes."""
    mean_KD, _ = count_moments(block)
    mean_K = mean_KD[:, own]
    x_N1 = x_N[:, None]
    sizes = getattr(block.estimator, "sizes_", None)
    if sizes is None:
        return x_N1 * np.log(mean_K) - mean_K
    from scipy.special import gammaln

    size_K = np.asarray(sizes)[:, own]
    rising_NK = gammaln(x_N1 + size_K) - gammaln(size_K) - x_N1 * np.log(size_K)
    return rising_NK + x_N1 * np.log(mean_K) - (x_N1 + size_K) * np.log1p(mean_K / size_K)


def _of_numbers(block: Normal, own: int, x_N: np.ndarray) -> np.ndarray:
    """Normal, or Student t where there are degrees of freedom."""
    mean_K = block.means_KD[:, own]
    scale_K = np.sqrt(block.scales_KDD[:, own, own])
    z_NK = (x_N[:, None] - mean_K) / scale_K
    if block.dofs_K is None:
        return -0.5 * z_NK**2 - np.log(scale_K)
    from scipy.special import gammaln

    dof_K = block.dofs_K
    constant_K = gammaln((dof_K + 1) / 2) - gammaln(dof_K / 2) - 0.5 * np.log(dof_K)
    return constant_K - (dof_K + 1) / 2 * np.log1p(z_NK**2 / dof_K) - np.log(scale_K)
