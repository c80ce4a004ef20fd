"""Weighted fits that EM's M steps are made of, in float64, and the groups that EM starts from.

N rows, P columns of a design (the first is the intercept), Q responses, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import expit, log_softmax, softmax
from sklearn.cluster import KMeans

from mixwell.density._gaussian import Array


def softmax_objective(x_NP: Array, target_NC: Array, w_CP: Array, ridge: float) -> float:
    """sum target log softmax(x w^T) - ridge / 2 |w without intercepts|^2, in nats."""
    logits_NC = x_NP @ w_CP.T
    log_NC = log_softmax(logits_NC, axis=1)
    likelihood = (target_NC * log_NC).sum()
    slopes_CP = w_CP[:, 1:]
    squares = (slopes_CP**2).sum()
    penalty = 0.5 * ridge * squares
    return float(likelihood - penalty)


def softmax_fit(x_NP: Array, target_NC: Array, w_CP: Array, ridge: float, steps: int = 10) -> Array:
    """Coefficients (C, P) that maximise `softmax_objective`, by Newton steps halved until they ascend.

    Rows of `target_NC` may sum to any weight. Coefficients of the classes sum to zero, so that no class is special.
    """
    C, P = w_CP.shape
    value = softmax_objective(x_NP, target_NC, w_CP, ridge)
    for _ in range(steps):
        gradient_CP, hessian = _softmax_derivatives(x_NP, target_NC, w_CP, ridge)
        _lift_diagonal(hessian)
        direction_CP = np.linalg.solve(hessian, gradient_CP.ravel()).reshape(C, P)
        slope = float((gradient_CP * direction_CP).sum())
        if not slope > 1e-10:
            break
        for halving in range(30):
            size = 0.5**halving
            trial_CP = w_CP + size * direction_CP
            new = softmax_objective(x_NP, target_NC, trial_CP, ridge)
            if new >= value + 1e-4 * size * slope:
                w_CP, value = trial_CP, new
                break
        else:
            break
    return w_CP - w_CP.mean(0)


def _lift_diagonal(hessian: Array) -> None:
    """Make a curvature that rounding left singular a little positive."""
    size = len(hessian)
    hessian[np.diag_indices(size)] += 1e-10 * np.trace(hessian) / size + 1e-300


def _free_intercept(size: int, ridge: float) -> Array:
    """The penalty of every coefficient (P,), none on the first."""
    penalised_P = np.full(size, ridge)
    penalised_P[0] = 0.0
    return penalised_P


def _softmax_derivatives(x_NP: Array, target_NC: Array, w_CP: Array, ridge: float) -> tuple[Array, Array]:
    """Gradient (C, P) of the objective and its negative Hessian (C P, C P)."""
    C, P = w_CP.shape
    prob_NC = softmax(x_NP @ w_CP.T, axis=1)
    mass_NC = prob_NC * target_NC.sum(1, keepdims=True)
    penalised_P = _free_intercept(P, ridge)
    hessian = np.empty((C, P, C, P))
    for a in range(C):
        for b in range(a, C):
            same = a == b
            weight_N = mass_NC[:, a] * (same - prob_NC[:, b])
            weighted_NP = x_NP * weight_N[:, None]
            block_PP = weighted_NP.T @ x_NP + same * np.diag(penalised_P)
            hessian[a, :, b, :] = block_PP
            hessian[b, :, a, :] = block_PP
    rest_NC = target_NC - mass_NC
    gradient_CP = rest_NC.T @ x_NP - penalised_P * w_CP
    return gradient_CP, hessian.reshape(C * P, C * P)


def least_squares(h_NP: Array, y_NQ: Array, weight_N: Array) -> Array:
    """Weighted least squares (P, Q) of least norm."""
    weighted_NP = h_NP * weight_N[:, None]
    gram_PP = weighted_NP.T @ h_NP
    cross_PQ = weighted_NP.T @ y_NQ
    found = np.linalg.lstsq(gram_PP, cross_PQ, rcond=None)
    return found[0]


def raise_eigenvalues(matrix: Array, floor: float) -> Array:
    """The likeliest covariance whose eigenvalues are at least `floor`, given a sample covariance."""
    values, vectors = np.linalg.eigh(matrix)
    if values[0] >= floor:
        return matrix
    scaled = vectors * np.maximum(values, floor)
    return scaled @ vectors.T


class Link(NamedTuple):
    """How a target's log density depends on a row's linear predictor, both (N,)."""

    kernel: Callable[[Array, Array], Array]  # of target and predictor: the log density but for what the latter leaves
    slope: Callable[[Array, Array], Array]  # its first derivative in the predictor
    curvature: Callable[[Array, Array], Array]  # its second, negated; above zero


POISSON = Link(lambda y, eta: y * eta - np.exp(eta), lambda y, eta: y - np.exp(eta), lambda y, eta: np.exp(eta))
BERNOULLI = Link(lambda y, eta: y * eta - np.logaddexp(0, eta), lambda y, eta: y - expit(eta),
                 lambda y, eta: expit(eta) * expit(-eta))
GAMMA = Link(lambda y, eta: -y * np.exp(-eta) - eta, lambda y, eta: y * np.exp(-eta) - 1,
             lambda y, eta: y * np.exp(-eta))  # for a shape of one, which does not move the best coefficients


def poisson_fit(h_NP: Array, y_N: Array, weight_N: Array, b_P: Array, ridge: float, steps: int = 20) -> Array:
    """Weighted Poisson regression with a log link."""
    return link_fit(POISSON, h_NP, y_N, weight_N, b_P, ridge, steps)


def link_fit(link: Link, h_NP: Array, y_N: Array, weight_N: Array, b_P: Array, ridge: float, steps: int = 20) -> Array:
    """Weighted regression through a link, by Newton steps halved until they ascend."""
    penalised_P = _free_intercept(len(b_P), ridge)

    def objective(b_P: Array) -> float:
        eta_N = h_NP @ b_P
        square = (penalised_P * b_P**2).sum()
        penalty = 0.5 * square
        with np.errstate(over="ignore"):  # a step that overshoots is halved
            log_N = link.kernel(y_N, eta_N)
            return float(weight_N @ log_N - penalty)

    value = objective(b_P)
    for _ in range(steps):
        eta_N = h_NP @ b_P
        rest_N = weight_N * link.slope(y_N, eta_N)
        gradient_P = h_NP.T @ rest_N - penalised_P * b_P
        weighted_NP = h_NP * (weight_N * link.curvature(y_N, eta_N))[:, None]
        hessian = weighted_NP.T @ h_NP + np.diag(penalised_P)
        _lift_diagonal(hessian)
        direction_P = np.linalg.solve(hessian, gradient_P)
        slope = float(gradient_P @ direction_P)
        if not slope > 1e-10:
            break
        sizes = (0.5**i for i in range(40))
        rising = (s for s in sizes if objective(b_P + s * direction_P) >= value + 1e-4 * s * slope)
        size = next(rising, None)
        if size is None:
            break
        b_P = b_P + size * direction_P
        value = objective(b_P)
    return b_P


def start(x_ND: Array, y_NQ: Array, experts: int, init: str, rng: np.random.RandomState) -> Array:
    """Responsibilities (N, K) to begin with: cells of rows and targets together, a little softened."""
    points = np.column_stack([x_ND, y_NQ])
    spread = np.maximum(points.std(0), 1e-12)
    points = (points - points.mean(0)) / spread
    if init == "kmeans":
        clusters = KMeans(experts, n_init=1, random_state=rng)
        labels_N = clusters.fit(points).labels_
    else:
        chosen = rng.choice(len(points), experts, replace=False)
        gaps = points[:, None] - points[chosen]
        distance_NK = (gaps**2).sum(-1)
        labels_N = distance_NK.argmin(1)
    hard_NK = np.eye(experts)[labels_N]
    return 0.95 * hard_NK + 0.05 / experts
