"""Sums of exponentials of linear forms, the shape that scaling and mixing laws share, fitted to runs.

    L_n = sum_k exp(sum_p X_nkp theta_p)

A power law A / N^alpha is one term of it: theta = (log A, alpha), X = (1, -log N); a constant is a term, too. The fit
minimises Huber's loss of the residuals (of log L, or of L) by L-BFGS from many starts, with the exact gradient.

Legend: N runs, K terms, P parameters, Q shape parameters (those that the linear forms themselves hang on), S starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mixwell.core.errors import MixwellError

try:
    from scipy.optimize import least_squares as least_squares
    from scipy.optimize import minimize
except ImportError as error:
    raise MixwellError("scaling laws need scipy 1.11 or later: pip install 'mixwell[tables]'.") from error

Terms = Callable[[np.ndarray], np.ndarray]  # shape parameters [Q] -> X [N, K, P]
FIRST, LAST = 80, 3000  # steps of L-BFGS from every start, and from the best ones
POLISHED = 4
NUDGE = 1e-5  # of a shape parameter's logarithm, for its difference quotient


class Problem(NamedTuple):
    """What is fitted."""

    terms: Terms
    bounds: Sequence[tuple[float, float]]  # of each shape parameter
    losses_N: np.ndarray
    weights_N: np.ndarray  # how much each run counts
    delta: float  # where Huber's loss turns from squares to absolute values
    in_logs: bool  # whether residuals are those of log L
    pull_P: np.ndarray | None = None  # how hard each parameter is drawn to 0: half of it times its square is added


class Solution(NamedTuple):
    """Parameters, and the mean of Huber's loss that they leave."""

    theta_P: np.ndarray
    shape_Q: np.ndarray
    objective: float


def log_loss(terms_NKP: np.ndarray, theta_P: np.ndarray) -> np.ndarray:
    """log L of every run: [N]."""
    log_terms_NK = terms_NKP @ theta_P
    return _logsumexp(log_terms_NK)


def _logsumexp(x_NK: np.ndarray) -> np.ndarray:
    top_N1 = x_NK.max(1, keepdims=True)
    total_N = np.exp(x_NK - top_N1).sum(1)
    return top_N1[:, 0] + np.log(total_N)


def huber(residual_N: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Huber's loss of each residual, and its derivative."""
    size_N = np.abs(residual_N)
    near_N = size_N <= delta
    squares_N = 0.5 * residual_N**2
    beyond_N = delta * (size_N - 0.5 * delta)
    slope_N = np.clip(residual_N, -delta, delta)
    return np.where(near_N, squares_N, beyond_N), slope_N


def objective(problem: Problem, theta_P: np.ndarray, shape_Q: np.ndarray) -> tuple[float, np.ndarray]:
    """Weighted mean of Huber's loss and what `pull_P` adds, and its gradient with respect to theta: [P]."""
    terms_NKP = problem.terms(shape_Q)
    log_terms_NK = terms_NKP @ theta_P
    predicted_N = _logsumexp(log_terms_NK)
    share_NK = np.exp(log_terms_NK - predicted_N[:, None])
    loss, pull_N = _pull(problem, predicted_N)
    pull_NK = pull_N[:, None] * share_NK
    slopes_P = np.einsum("nk,nkp->p", pull_NK, terms_NKP)
    if problem.pull_P is None:
        return loss, slopes_P
    drawn_P = problem.pull_P * theta_P
    return loss + 0.5 * float(drawn_P @ theta_P), slopes_P + drawn_P


def _pull(problem: Problem, predicted_N: np.ndarray) -> tuple[float, np.ndarray]:
    """Weighted mean of Huber's loss of log L predicted, and its derivative with respect to each: [N]."""
    if problem.in_logs:
        residual_N = predicted_N - np.log(problem.losses_N)
        inner_N = np.ones_like(residual_N)
    else:
        inner_N = np.exp(np.minimum(predicted_N, 300.0))
        residual_N = inner_N - problem.losses_N
    loss_N, slope_N = huber(residual_N, problem.delta)
    weights_N = problem.weights_N / problem.weights_N.sum()
    pull_N = weights_N * slope_N * inner_N
    return float(weights_N @ loss_N), pull_N


def solve(problem: Problem, starts_SP: np.ndarray, starts_SQ: np.ndarray) -> Solution:
    """The best of many starts: each goes some steps, the best few to the end."""
    tried = []
    for theta_P, shape_Q in zip(starts_SP, starts_SQ):
        start = Solution(theta_P, shape_Q, np.inf)
        tried.append(descend(problem, start, FIRST))
    tried.sort(key=_objective)
    best = tried[:POLISHED]
    ended = [descend(problem, one, LAST) for one in best]
    return min(ended, key=_objective)


def _objective(found: Solution) -> float:
    return found.objective


def descend(problem: Problem, start: Solution, steps: int) -> Solution:
    """L-BFGS from one start, in coordinates in which the linear forms are orthonormal.

    Logarithms of counts hardly vary beside their size, so that a prefactor and its exponent move together; without the
    change of coordinates thousands of steps would be needed. What the runs cannot tell apart stays where it was.
    """
    back_PR = _coordinates(problem.terms(start.shape_Q))
    rank = back_PR.shape[1]
    theta_0 = start.theta_P
    unit = problem.delta**2 if problem.in_logs else problem.delta  # else the optimiser's absolute tolerance stops it

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        moved_R, log_shape_Q = x[:rank], x[rank:]
        theta_P = theta_0 + back_PR @ moved_R
        found, gradient_P = objective(problem, theta_P, np.exp(log_shape_Q))
        slopes_R = gradient_P @ back_PR
        slopes_Q = _shape_slopes(problem, theta_P, log_shape_Q)
        gradient = np.concatenate([slopes_R, slopes_Q])
        return found / unit, gradient / unit

    origin = np.zeros(rank)
    x_0 = np.concatenate([origin, np.log(start.shape_Q)])
    free = [(None, None)] * rank
    held = [tuple(np.log(ends)) for ends in problem.bounds]
    options = {"maxiter": steps, "maxfun": 4 * steps, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(value, x_0, jac=True, method="L-BFGS-B", bounds=free + held, options=options)
    moved_R, log_shape_Q = found.x[:rank], found.x[rank:]
    theta_P = theta_0 + back_PR @ moved_R
    return Solution(theta_P, np.exp(log_shape_Q), found.fun * unit)


def _coordinates(terms_NKP: np.ndarray) -> np.ndarray:
    """From coordinates of unit effect to parameters: [P, R]; R is how many the runs tell apart."""
    N, K, P = terms_NKP.shape
    rows = terms_NKP.reshape(N * K, P)
    _, sizes, directions = np.linalg.svd(rows, full_matrices=False)
    kept = sizes > 1e-9 * sizes[0]
    scale_R = sizes[kept] / np.sqrt(N * K)
    directions_RP = directions[kept]
    return directions_RP.T / scale_R


def _shape_slopes(problem: Problem, theta_P: np.ndarray, log_shape_Q: np.ndarray) -> np.ndarray:
    """Derivatives with respect to the logarithms of the shape parameters, by central differences."""
    slopes = np.zeros_like(log_shape_Q)
    steps_QQ = NUDGE * np.eye(len(log_shape_Q))
    for q, step_Q in enumerate(steps_QQ):
        above = _loss(problem, theta_P, np.exp(log_shape_Q + step_Q))
        below = _loss(problem, theta_P, np.exp(log_shape_Q - step_Q))
        slopes[q] = (above - below) / (2 * NUDGE)
    return slopes


def _loss(problem: Problem, theta_P: np.ndarray, shape_Q: np.ndarray) -> float:
    """The objective without its gradient, which costs as much again."""
    terms_NKP = problem.terms(shape_Q)
    predicted_N = log_loss(terms_NKP, theta_P)
    loss, _ = _pull(problem, predicted_N)
    return loss
