"""Matern processes as linear stochastic differential equations: time steps, filter and smoother in linear time.

R functions of one kernel, S entries of a function's state (itself and, where it has one, its derivative), U places in
order. What is known at a place are a precision (R, R) and its product with a value (R,): exp(h . f - f' J f / 2).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mixwell.density._gaussian import Array, outer, symmetric

KERNELS = ("matern12", "matern32")


class Steps(NamedTuple):
    """What carries the state of R functions from place to place."""

    carry_MXX: Array  # X = R S, M = U - 1
    noise_MXX: Array
    stationary_XX: Array
    read_RX: Array  # the functions among the state


class Smoothed(NamedTuple):
    """Functions at all places, given what is known at all of them."""

    mean_UR: Array
    cov_URR: Array
    log_mass: float  # log E exp(sum h . f - f' J f / 2) under the prior


def steps(place_U: Array, functions: int, kernel: str, length: float, variance: float) -> Steps:
    """The dynamics of R independent functions between places in order."""
    gap_M = np.diff(place_U)
    carry_MSS, stationary_SS = carried(gap_M, kernel, length, variance)
    kept_MSS = carry_MSS @ stationary_SS @ carry_MSS.swapaxes(1, 2)
    noise_MSS = symmetric(stationary_SS - kept_MSS)
    eye_RR = np.eye(functions)
    read_1S = np.eye(len(stationary_SS))[:1]
    return Steps(
        np.kron(eye_RR, carry_MSS),
        np.kron(eye_RR, noise_MSS),
        np.kron(eye_RR, stationary_SS),
        np.kron(eye_RR, read_1S),
    )


def carried(gap_M: Array, kernel: str, length: float, variance: float) -> tuple[Array, Array]:
    """exp(F dt) (M, S, S) for gaps dt, and the stationary covariance (S, S) of one function's state."""
    if kernel == "matern12":
        fall_M = np.exp(-gap_M / length)
        return fall_M[:, None, None], np.array([[variance]])
    rate = np.sqrt(3) / length
    turn_SS = np.array([[rate, 1.0], [-(rate**2), -rate]])  # F + rate I, whose square is zero
    grown_MSS = np.eye(2) + gap_M[:, None, None] * turn_SS
    fall_M = np.exp(-rate * gap_M)
    curvature = variance * rate**2
    return fall_M[:, None, None] * grown_MSS, np.diag([variance, curvature])


def smooth(steps_: Steps, precision_URR: Array, pull_UR: Array) -> Smoothed:
    """Means and covariances of the functions at all places; what is known may be nothing (zeros) at some of them."""
    read_RX = steps_.read_RX
    known_UXX = read_RX.T @ precision_URR @ read_RX
    pull_UX = pull_UR @ read_RX
    mean_UX, cov_UXX, log_mass = _forward(steps_, known_UXX, pull_UX)
    later_UXX, later_UX = _backward(steps_, known_UXX, pull_UX)
    cov_UXX = _tightened(cov_UXX, later_UXX)
    met_UX = np.einsum("uxy,uy->ux", later_UXX, mean_UX)
    gap_UX = later_UX - met_UX
    shift_UX = np.einsum("uxy,uy->ux", cov_UXX, gap_UX)
    mean_UX = mean_UX + shift_UX
    mean_UR = mean_UX @ read_RX.T
    cov_URR = read_RX @ cov_UXX @ read_RX.T
    return Smoothed(mean_UR, symmetric(cov_URR), log_mass)


def _tightened(cov: Array, precision: Array) -> Array:
    """(cov^-1 + precision)^-1, for singular ones as well."""
    eye = np.eye(cov.shape[-1])
    return symmetric(np.linalg.solve(eye + cov @ precision, cov))


def _forward(steps_: Steps, known_UXX: Array, pull_UX: Array) -> tuple[Array, Array, float]:
    """States given what is known up to their own place, and the log mass of it all."""
    mean_UX, cov_UXX = np.empty_like(pull_UX), np.empty_like(known_UXX)
    mean_X, cov_XX = np.zeros(pull_UX.shape[1]), steps_.stationary_XX
    eye_XX = np.eye(len(mean_X))
    log_mass = 0.0
    for u, (known_XX, pull_X) in enumerate(zip(known_UXX, pull_UX)):
        if u:
            carry_XX = steps_.carry_MXX[u - 1]
            mean_X = carry_XX @ mean_X
            cov_XX = carry_XX @ cov_XX @ carry_XX.T + steps_.noise_MXX[u - 1]
        met_X = known_XX @ mean_X
        gap_X = pull_X - met_X
        ratio_XX = eye_XX + cov_XX @ known_XX
        tight_XX = np.linalg.solve(ratio_XX, cov_XX)
        cov_XX = symmetric(tight_XX)
        shift_X = cov_XX @ gap_X
        _, log_det = np.linalg.slogdet(ratio_XX)
        drawn_X = pull_X + gap_X
        log_mass += 0.5 * (drawn_X @ mean_X + gap_X @ shift_X - log_det)
        mean_X = mean_X + shift_X
        mean_UX[u] = mean_X
        cov_UXX[u] = cov_XX
    return mean_UX, cov_UXX, float(log_mass)


def _backward(steps_: Steps, known_UXX: Array, pull_UX: Array) -> tuple[Array, Array]:
    """Precision (U, X, X) and pull (U, X) at every place by what is known beyond it; no covariance is inverted."""
    later_UXX, later_UX = np.zeros_like(known_UXX), np.zeros_like(pull_UX)
    eye_XX = np.eye(pull_UX.shape[1])
    for u in range(len(pull_UX) - 2, -1, -1):
        ahead_XX = known_UXX[u + 1] + later_UXX[u + 1]
        pull_X = pull_UX[u + 1] + later_UX[u + 1]
        carry_XX = steps_.carry_MXX[u]
        blurred_XX = eye_XX + ahead_XX @ steps_.noise_MXX[u]
        both = np.column_stack([ahead_XX @ carry_XX, pull_X])
        back = carry_XX.T @ np.linalg.solve(blurred_XX, both)
        later_UXX[u], later_UX[u] = symmetric(back[:, :-1]), back[:, -1]
    return later_UXX, later_UX


def second(mean_UR: Array, cov_URR: Array) -> Array:
    """E[f f'] (U, R, R)."""
    return cov_URR + outer(mean_UR, mean_UR)
