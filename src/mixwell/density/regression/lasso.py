"""Lasso mixture of experts: l1 penalties on gates and means, for many more columns than matter.

**Equation:** maximise  (1/n) sum_i log sum_k pi_k(x_i) N(y_i; b_k0 + b_k . x_i, s_k^2) - lambda (|W|_1 + |b|_1),
pi(x) = softmax(w_0 + W x); intercepts and variances are free. EM: the M step climbs each penalised part by accelerated
soft-thresholded gradient steps, w <- S(w + g / L, n lambda / L), S(v, t) = sign(v) max(|v| - t, 0).

**Shapes:** X (N, D), y (N,); `gate_coef_` (K, 1 + D), `coef_` (K, 1 + D, 1), `support_` (D,) booleans.

**Reference:** T. Nguyen, H. D. Nguyen, Chamroukhi, McLachlan (2020), Non-asymptotic oracle inequalities for the Lasso
in high-dimensional mixture of experts, arXiv:2009.10622; EM for it as in Chamroukhi and Huynh (2019).

**Differs:** written from memory of the paper, which bounds the parameters and proves a bound, and gives no algorithm.
Columns are standardised before they are penalised. All K rows of W are penalised, none is fixed at zero.

**Fails when:** lambda is so small that fewer rows than columns are interpolated, or so large that all experts agree;
noise alone moves a coefficient up to a lambda of about sqrt(2 log D / n) / s_k. No start finds experts whose effects
cancel over all rows when columns are many.

**Cost:** O(K N D + K D^2) a thresholded step, `inner_steps` of them in every EM step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax, softmax
from sklearn.utils.validation import check_is_fitted

from mixwell.core.method import method
from mixwell.density._gaussian import Array
from mixwell.density.regression._parts import (
    GatedRegressor,
    GaussianExperts,
    Params,
    SoftmaxGates,
    check_common,
    keep_dead,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the lasso mixture of experts; `ValueError` for one out of range."""

    n_experts: int = 2  # K
    penalty: float = 0.05  # lambda, in nats a row and unit of a coefficient (of a standardised column, in y's units)
    inner_steps: int = 20  # thresholded gradient steps in every EM step
    reg_covar: float = 1e-3  # smallest variance of an expert, as a share of y's variance
    tol: float = 1e-6  # stop when a step gains less, in nats a row
    max_iter: int = 300
    n_init: int = 1  # starts; the one with the highest penalised likelihood is kept
    init: str = "kmeans"  # "kmeans" or "random" (cells of random rows)
    random_state: Any = None  # of the starts

    def __post_init__(self) -> None:
        check_common(self)
        if self.penalty < 0:
            raise ValueError(f"penalty is {self.penalty}; expected 0 or more")
        if self.inner_steps < 1 or self.reg_covar <= 0:
            raise ValueError(f"inner_steps is {self.inner_steps} and reg_covar {self.reg_covar}; expected at least 1, "
                             "and above 0")


def shrink(w: Array, threshold: float | Array) -> Array:
    """Soft threshold: the proximal map of the l1 norm."""
    left = np.maximum(np.abs(w) - threshold, 0.0)
    return np.sign(w) * left


def thresholded_ascent(value: Callable[[Array], float], gradient: Callable[[Array], Array], w: Array, penalty: Array,
                       curvature: float, steps: int) -> Array:
    """Climb `value(w) - sum penalty |w|` for a concave `value` whose Hessian is at most `curvature`; never descends."""
    def objective(w: Array) -> float:
        lost = penalty * np.abs(w)
        return value(w) - float(lost.sum())

    best, ahead = w, w
    height, momentum = objective(w), 1.0
    for _ in range(steps):
        step = gradient(ahead) / curvature
        trial = shrink(ahead + step, penalty / curvature)
        reached = objective(trial)
        if reached < height:  # momentum overshot; a plain step from the best cannot
            if ahead is best:
                break
            ahead, momentum = best, 1.0
            continue
        following = 0.5 * (1 + np.sqrt(1 + 4 * momentum**2))
        pace = (momentum - 1) / following
        ahead = trial + pace * (trial - best)
        best, height, momentum = trial, reached, following
    return best


def l1_penalty(coef: Array, strength: float) -> float:
    """The strength times the sizes of coefficients (K, P, ...) other than intercepts, in nats."""
    sizes = np.abs(coef[:, 1:])
    return strength * float(sizes.sum())


@dataclass(frozen=True)
class LassoGates(SoftmaxGates):
    """Softmax gates with an l1 penalty; `ridge` is that penalty's strength, n lambda."""

    steps: int = 20

    def penalty(self, params: Params) -> float:
        return l1_penalty(params["gate_coef"], self.ridge)

    def maximise(self, x_NP: Array, resp_NK: Array, params: Params | None) -> Params:
        shape = resp_NK.shape[1], x_NP.shape[1]
        w_KP = np.zeros(shape)
        if params is not None:
            w_KP = params["gate_coef"]
        strength = np.full(shape, self.ridge)
        strength[:, 0] = 0.0

        def value(w_KP: Array) -> float:
            log_NK = log_softmax(x_NP @ w_KP.T, axis=1)
            return float((resp_NK * log_NK).sum())

        def gradient(w_KP: Array) -> Array:
            prob_NK = softmax(x_NP @ w_KP.T, axis=1)
            return (resp_NK - prob_NK).T @ x_NP

        gram_PP = x_NP.T @ x_NP
        largest = np.linalg.norm(gram_PP, 2)
        curvature = 0.5 * float(largest)
        found_KP = thresholded_ascent(value, gradient, w_KP, strength, curvature, self.steps)
        return {"gate_coef": found_KP}


@dataclass(frozen=True)
class LassoExperts(GaussianExperts):
    """Normal experts of one response with an l1 penalty on slopes."""

    strength: float = 0.0  # n lambda
    steps: int = 20

    def penalty(self, params: Params) -> float:
        return l1_penalty(params["coef"], self.strength)

    def maximise(self, h_NP: Array, y: Array, resp_NK: Array, params: Params | None) -> Params:
        if params is None:  # from the dense side: from zeros, wide variances would make zeros stay
            params = self._dense(h_NP, y, resp_NK)
        old = zip(resp_NK.T, params["coef"], params["covariances"])
        fits = [self._one(h_NP, y[:, 0], *one) for one in old]
        coef, variances = zip(*fits)
        new = {"coef": np.stack(coef), "covariances": np.stack(variances)}
        return keep_dead(new, params, resp_NK.sum(0), ("coef", "covariances"))

    def _dense(self, h_NP: Array, y: Array, resp_NK: Array) -> Params:
        """Ridge regressions to begin with."""
        coef, variances = [], []
        eye_PP = np.eye(h_NP.shape[1])
        for resp_N in resp_NK.T:
            total = resp_N.sum()
            weighted_NP = h_NP * resp_N[:, None]
            gram_PP = weighted_NP.T @ h_NP + 0.1 * total * eye_PP
            coef_P1 = np.linalg.solve(gram_PP, weighted_NP.T @ y)
            rest_N = (y - h_NP @ coef_P1)[:, 0]
            variance = float(resp_N @ rest_N**2) / total
            coef.append(coef_P1)
            variances.append(max(variance, self.floor))
        return {"coef": np.stack(coef), "covariances": np.array(variances)[:, None, None]}

    def _one(self, h_NP: Array, y_N: Array, resp_N: Array, coef_P1: Array, variance_11: Array) -> tuple[Array, Array]:
        """Coefficients (P, 1) and variance (1, 1) of one expert."""
        weighted_NP = h_NP * resp_N[:, None] / variance_11
        gram_PP = weighted_NP.T @ h_NP
        cross_P = weighted_NP.T @ y_N
        strength_P = np.full(len(cross_P), self.strength)
        strength_P[0] = 0.0

        def value(b_P: Array) -> float:
            mean_slope_P = cross_P - 0.5 * gram_PP @ b_P
            return float(b_P @ mean_slope_P)

        def gradient(b_P: Array) -> Array:
            return cross_P - gram_PP @ b_P

        curvature = max(float(np.linalg.norm(gram_PP, 2)), 1e-300)
        b_P = thresholded_ascent(value, gradient, coef_P1[:, 0], strength_P, curvature, self.steps)
        rest_N = y_N - h_NP @ b_P
        variance = resp_N @ rest_N**2 / max(resp_N.sum(), 1e-300)
        floored = max(variance, self.floor)
        return b_P[:, None], np.full((1, 1), floored)


@method(
    title="Lasso mixture of experts",
    paper="Non-asymptotic oracle inequalities for the Lasso in high-dimensional mixture of experts",
    year=2020,
    tags={"estimator", "em", "responsibilities", "sklearn"},
)
class LassoMixtureOfExperts(GatedRegressor, config=Config):
    """Softmax-gated mixture of sparse linear regressions; see the module's card and `Config`."""

    def fit(self, X: Any, y: Any) -> LassoMixtureOfExperts:
        """Fit to X (N, D) and y (N,); a `ValueError` where options or data are none that can be fitted."""
        config = self._config()
        x_ND, y_NQ = self._read(X, y, multi_output=False)
        strength = config.penalty * len(x_ND)
        floor = config.reg_covar * max(float(y_NQ.var()), 1e-300)
        gates = LassoGates(strength, config.inner_steps)
        experts = LassoExperts(floor, None, strength, config.inner_steps)
        self._fit_gated(x_ND, y_NQ, y_NQ, gates, experts, config)
        in_gates_D = (self.gate_coef_[:, 1:] != 0).any(0)
        in_experts_D = (self.coef_[:, 1:, 0] != 0).any(0)
        self.support_ = in_gates_D | in_experts_D
        return self

    def n_parameters(self) -> int:
        """Number of parameters that are not zero, and variances; an error before `fit`."""
        check_is_fitted(self)
        K = len(self.coef_)
        slopes = (self.gate_coef_[:, 1:], self.coef_[:, 1:])
        free = sum(int(np.count_nonzero(values)) for values in slopes)
        intercepts = 2 * K - 1
        variances = K
        return intercepts + variances + free

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = False
        return tags


def example(generator: torch.Generator) -> dict[str, Any]:
    """Ten columns of which one matters, with a sign that the same column decides."""
    x_ND = torch.randn(90, 10, generator=generator, dtype=torch.float64)
    noise_N = torch.randn(90, generator=generator, dtype=torch.float64)
    clean_N = x_ND[:, 0].abs()
    y_N = clean_N + 0.1 * noise_N
    estimator = LassoMixtureOfExperts(random_state=0)
    return {
        "estimator": estimator,
        "X": x_ND.numpy(),
        "y": y_N.numpy(),
    }
