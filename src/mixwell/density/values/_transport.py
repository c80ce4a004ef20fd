"""Optimal transport between two small discrete distributions."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix
from scipy.special import logsumexp

MASS = 1e6  # the solver's tolerance of 1e-7 is absolute: masses are handed to it this much larger


def transport(cost_KL: np.ndarray, w_K: np.ndarray, v_L: np.ndarray) -> np.ndarray:
    """Coupling (K, L) with marginals w and v and the least total cost."""
    K, L = cost_KL.shape
    k, l = (index.ravel() for index in np.indices((K, L)))
    variables, ones = np.arange(K * L), np.ones(K * L)
    marginals = coo_matrix((np.r_[ones, ones], (np.r_[k, K + l], np.r_[variables, variables]))).tocsr()
    # the last marginal follows from the others; with rounding it could contradict them
    result = linprog(cost_KL.ravel(), A_eq=marginals[:-1], b_eq=MASS * np.r_[w_K / w_K.sum(), v_L / v_L.sum()][:-1],
                     method="highs")
    if result.status != 0:
        raise ValueError(f"the transport problem was not solved: {result.message}")
    return result.x.reshape(K, L) / MASS


def smoothed(cost_KL: np.ndarray, w_K: np.ndarray, v_L: np.ndarray, smoothing: float, max_iter: int) -> np.ndarray:
    """Coupling (K, L) by Sinkhorn's steps in log space, then moved onto its marginals.

    The entropy is weighed by `smoothing` times the cost of the independent coupling.
    """
    w_K, v_L = w_K / w_K.sum(), v_L / v_L.sum()
    with np.errstate(divide="ignore"):
        log_w_K, log_v_L = np.log(w_K), np.log(v_L)
    kernel_KL = -cost_KL / max(smoothing * float(w_K @ cost_KL @ v_L), 1e-300)
    g_L = np.zeros_like(v_L)
    for _ in range(max_iter):
        f_K = log_w_K - logsumexp(kernel_KL + g_L, axis=1)
        g_L = log_v_L - logsumexp(kernel_KL + f_K[:, None], axis=0)
        plan_KL = np.exp(f_K[:, None] + kernel_KL + g_L)
        if np.abs(plan_KL.sum(1) - w_K).sum() < 1e-12:
            break
    plan_KL *= np.minimum(1, w_K / np.maximum(plan_KL.sum(1), 1e-300))[:, None]
    plan_KL *= np.minimum(1, v_L / np.maximum(plan_KL.sum(0), 1e-300))
    lacks_K, lacks_L = w_K - plan_KL.sum(1), v_L - plan_KL.sum(0)
    return plan_KL + np.outer(lacks_K, lacks_L) / max(lacks_K.sum(), 1e-300)
