"""Optimal transport between two small discrete distributions."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix, csr_matrix
from scipy.special import logsumexp

MASS = 1e6  # the solver's tolerance of 1e-7 is absolute: masses are handed to it this much larger


def transport(cost_KL: np.ndarray, w_K: np.ndarray, v_L: np.ndarray) -> np.ndarray:
    """Coupling (K, L) with marginals w and v and the least total cost; a `ValueError` where none is found."""
    K, L = cost_KL.shape
    w_K, v_L = w_K / w_K.sum(), v_L / v_L.sum()
    marginals = _marginals(K, L)
    sums = MASS * np.concatenate([w_K, v_L])
    # the last marginal follows from the others; with rounding it could contradict them
    result = linprog(
        cost_KL.ravel(),
        A_eq=marginals[:-1],
        b_eq=sums[:-1],
        method="highs",
    )
    if result.status != 0:
        raise ValueError(f"the transport problem was not solved: {result.message}")
    plan_KL = result.x.reshape(K, L)
    return plan_KL / MASS


def _marginals(K: int, L: int) -> csr_matrix:
    """The map (K + L, K L) from a coupling's entries to its sums over rows and columns."""
    size = K * L
    k, l = np.divmod(np.arange(size), L)
    sums = np.concatenate([k, K + l])
    entries = np.tile(np.arange(size), 2)
    ones = np.ones(2 * size)
    marginals = coo_matrix((ones, (sums, entries)))
    return marginals.tocsr()


def smoothed(cost_KL: np.ndarray, w_K: np.ndarray, v_L: np.ndarray, smoothing: float, max_iter: int) -> np.ndarray:
    """Coupling (K, L) by Sinkhorn's steps in log space, then moved onto its marginals.

    The entropy's weight is `smoothing` times the cost of the independent coupling.
    """
    w_K, v_L = w_K / w_K.sum(), v_L / v_L.sum()
    with np.errstate(divide="ignore"):
        log_w_K, log_v_L = np.log(w_K), np.log(v_L)
    independent = float(w_K @ cost_KL @ v_L)
    unit = max(smoothing * independent, 1e-300)
    kernel_KL = -cost_KL / unit
    g_L = np.zeros_like(v_L)
    for _ in range(max_iter):
        log_sum_K = logsumexp(kernel_KL + g_L, axis=1)
        f_K = log_w_K - log_sum_K
        f_K1 = f_K[:, None]
        log_sum_L = logsumexp(kernel_KL + f_K1, axis=0)
        g_L = log_v_L - log_sum_L
        plan_KL = np.exp(f_K1 + kernel_KL + g_L)
        apart_K = np.abs(plan_KL.sum(1) - w_K)
        if apart_K.sum() < 1e-12:
            break
    return _onto_marginals(plan_KL, w_K, v_L)


def _onto_marginals(plan_KL: np.ndarray, w_K: np.ndarray, v_L: np.ndarray) -> np.ndarray:
    """A plan cut where its sums are too large, and what is then missing spread evenly."""
    share_K = w_K / np.maximum(plan_KL.sum(1), 1e-300)
    plan_KL *= np.minimum(1, share_K)[:, None]
    share_L = v_L / np.maximum(plan_KL.sum(0), 1e-300)
    plan_KL *= np.minimum(1, share_L)
    lacks_K = w_K - plan_KL.sum(1)
    lacks_L = v_L - plan_KL.sum(0)
    missing_KL = np.outer(lacks_K, lacks_L)
    return plan_KL + missing_KL / max(lacks_K.sum(), 1e-300)
