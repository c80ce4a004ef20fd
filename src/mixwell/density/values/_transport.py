"""Optimal transport between two small discrete distributions."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix


def transport(cost_KL: np.ndarray, w_K: np.ndarray, v_L: np.ndarray) -> np.ndarray:
    """Coupling (K, L) with marginals w and v and the least total cost."""
    K, L = cost_KL.shape
    k, l = (index.ravel() for index in np.indices((K, L)))
    variables, ones = np.arange(K * L), np.ones(K * L)
    marginals = coo_matrix((np.r_[ones, ones], (np.r_[k, K + l], np.r_[variables, variables]))).tocsr()
    # the last marginal follows from the others; with rounding it could contradict them
    result = linprog(cost_KL.ravel(), A_eq=marginals[:-1], b_eq=np.r_[w_K / w_K.sum(), v_L / v_L.sum()][:-1],
                     method="highs")
    if result.status != 0:
        raise ValueError(f"the transport problem was not solved: {result.message}")
    return result.x.reshape(K, L)
