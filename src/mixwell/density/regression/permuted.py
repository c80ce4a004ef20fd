"""Regression whose responses lost their order: a generalised linear model, and which row of Y belongs to which of X.

**Equation:** row i of X belongs to row pi(i) of Y; log L(B, pi) = sum_i sum_q o_{pi(i) q} [y_{pi(i) q} eta_iq -
psi(eta_iq)] / phi_q + const, eta = (1, X) B, o = 1 where a response is observed, psi the family's cumulant (eta^2 / 2,
e^eta, log(1 + e^eta)), phi the noise variance (gaussian; 1 otherwise). Given B the best pi is a linear assignment on
gain_ik = sum_q o_kq [y_kq eta_iq - psi(eta_iq)] / phi_q; without missing responses psi falls out. Given pi every
response is a regression of its own. The first B is fitted to the rows known to be in place (all of them where none are
named); then assignment and fit alternate until pi stays (maximum likelihood), or once (`max_iter=1`: two steps).

**Shapes:** X (N, D), Y (N,) or (N, Q), NaN where missing; `permutation_` (N,), `coef_` (Q, D), `intercept_` (Q,).

**Reference:** Fang, Li (2022), Regression with Label Permutation in Generalized Linear Model, arXiv:2206.11775.

**Differs:** written from the abstract; steps are derived here. Gaussian responses have a noise variance each, fitted
in the same ascent, so that their units do not count. A ridge on slopes is part of what ascends, and so is a price for
moved rows where one is set: the prior that most rows are in place.

**Fails when:** most rows are permuted (the first fit shrinks to zero, and the ascent stays near identity); responses
tell rows apart too little: one alone is merely sorted, and a few labels (logistic) are rearranged until they are
separable and slopes grow without end, against which stand ridge and moving_cost. Equal rows of Y cannot be told apart.

**Cost:** O(N^2 Q + U^3) an iteration for U rows that may have moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import expit, gammaln
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, validate_data

from mixwell.core.method import method
from mixwell.density._gaussian import Array, log_normal
from mixwell.density._options import Configured
from mixwell.density.regression._fits import BERNOULLI, POISSON, link_fit
from mixwell.density.regression._parts import check_at_least_one, ridge_penalty, with_intercept

FAMILIES = ("gaussian", "poisson", "logistic")
LINKS = {"poisson": POISSON, "logistic": BERNOULLI}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the regression; `ValueError` for one out of range."""

    family: Literal["gaussian", "poisson", "logistic"] = "gaussian"  # of all responses, canonical links
    ridge: float = 0.1  # penalty on squared slopes, in nats
    moving_cost: float = 0.0  # nats that a row has to gain before it leaves its place; 0: the paper's
    max_iter: int = 100  # of alternations; 1: two steps

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family is {self.family!r}; expected one of {', '.join(FAMILIES)}")
        check_at_least_one(self, "max_iter")
        if self.ridge < 0 or self.moving_cost < 0:
            raise ValueError(f"ridge and moving_cost are {self.ridge} and {self.moving_cost}; expected 0 or more")


class Coefficients(NamedTuple):
    """A fit to paired rows."""

    b_PQ: Array  # the intercept's row first
    noise_Q: Array  # variance of what a gaussian response leaves; ones for other families


def cumulant(eta: Array, family: str) -> Array:
    """psi of the family."""
    if family == "poisson":
        return np.exp(eta)
    return np.logaddexp(0, eta) if family == "logistic" else 0.5 * eta**2


def mean(eta: Array, family: str) -> Array:
    """Expected responses, the derivative of psi."""
    if family == "poisson":
        return np.exp(eta)
    return expit(eta) if family == "logistic" else eta


def fit_columns(h_NP: Array, y_NQ: Array, family: str, ridge: float, floor_Q: Array) -> Coefficients:
    """Every response's regression on h over the rows where it is not NaN; gaussian variances are `floor_Q` or more."""
    slopes, noises = [], []
    for y_N, floor in zip(y_NQ.T, floor_Q):
        seen_N = ~np.isnan(y_N)
        seen_y, seen_h = y_N[seen_N], h_NP[seen_N]
        b_P, noise = _fit_column(seen_h, seen_y, family, ridge, floor)
        slopes.append(b_P)
        noises.append(noise)
    b_PQ = np.stack(slopes, 1)
    return Coefficients(b_PQ, np.array(noises))


def _fit_column(h_NP: Array, y_N: Array, family: str, ridge: float, floor: float) -> tuple[Array, float]:
    if family == "gaussian":
        return _fit_gaussian(h_NP, y_N, ridge, floor)
    return _fit_linked(h_NP, y_N, family, ridge), 1.0


def _fit_linked(h_NP: Array, y_N: Array, family: str, ridge: float) -> Array:
    ones_N = np.ones_like(y_N)
    first_P = np.zeros_like(h_NP[0])
    if family == "poisson":
        level = y_N.mean() + 1e-6
        first_P[0] = np.log(level)
    return link_fit(LINKS[family], h_NP, y_N, ones_N, first_P, ridge, steps=50)


def _fit_gaussian(h_NP: Array, y_N: Array, ridge: float, floor: float) -> tuple[Array, float]:
    """Ridge regression and its noise variance at their joint optimum, the ridge in nats whatever the variance."""
    penalty_PP = ridge * np.eye(h_NP.shape[1])
    penalty_PP[0, 0] = 0.0
    gram_PP = h_NP.T @ h_NP
    cross_P = h_NP.T @ y_N
    noise = max(y_N.var(), floor)
    for _ in range(100):
        found = np.linalg.lstsq(gram_PP + noise * penalty_PP, cross_P, rcond=None)
        b_P = found[0]
        rest_N = y_N - h_NP @ b_P
        before = noise
        left = np.mean(rest_N**2)
        noise = max(left, floor)
        if abs(noise - before) <= 1e-12 * noise:
            break
    return b_P, float(noise)


def gains(h_NP: Array, y_NQ: Array, found: Coefficients, family: str) -> Array:
    """What pairing row i of X with row k of Y adds to the log likelihood (N, N), up to what k adds anywhere."""
    seen_NQ = ~np.isnan(y_NQ)
    filled_NQ = np.where(seen_NQ, y_NQ, 0.0)
    eta_NQ = h_NP @ found.b_PQ
    psi_NQ = cumulant(eta_NQ, family)
    each_NQ = filled_NQ / found.noise_Q
    counted_NQ = seen_NQ / found.noise_Q
    return eta_NQ @ each_NQ.T - psi_NQ @ counted_NQ.T


def assign(gain_NN: Array, known_N: Array, moving_cost: float = 0.0) -> Array:
    """The permutation (N,) of largest total gain that leaves known rows in place; others pay for moving."""
    N = len(gain_NN)
    gain_NN = gain_NN + moving_cost * np.eye(N)
    permutation_N = np.arange(N)
    free_U = np.flatnonzero(~known_N)
    among_UU = gain_NN[np.ix_(free_U, free_U)]
    _, places_U = linear_sum_assignment(among_UU, maximize=True)
    permutation_N[free_U] = free_U[places_U]
    return permutation_N


def log_likelihood(h_NP: Array, y_NQ: Array, found: Coefficients, family: str) -> Array:
    """Log probability (N,) of paired rows, in nats; missing responses count nothing."""
    eta_NQ = h_NP @ found.b_PQ
    if family == "gaussian":
        gap_NQ = y_NQ - eta_NQ
        log_scale_Q = 0.5 * np.log(found.noise_Q)
        each_NQ = log_normal(gap_NQ**2 / found.noise_Q, log_scale_Q)
    else:
        base_NQ = gammaln(y_NQ + 1) if family == "poisson" else 0.0
        psi_NQ = cumulant(eta_NQ, family)
        each_NQ = y_NQ * eta_NQ - psi_NQ - base_NQ
    return np.nansum(each_NQ, 1)


@method(
    title="Regression with permuted responses",
    paper="Regression with Label Permutation in Generalized Linear Model",
    year=2022,
    tags={"estimator", "em", "sklearn"},
)
class PermutedRegression(RegressorMixin, Configured, config=Config):
    """Generalised linear model of responses whose rows may be out of order; see the module's card.

    After `fit`: `permutation_` (row i of X belongs to row `permutation_[i]` of y), `coef_`, `intercept_`, `noise_` (Q,)
    variances (ones but for gaussian), `log_likelihoods_` (nats in all less what ridge and moves cost, one a fit, none
    below the one before), `n_iter_`.
    """

    def fit(self, X: Any, y: Any, known: Any = None) -> PermutedRegression:
        """Fit to X (N, D) and responses y (N,) or (N, Q), NaN where missing.

        known: (N,) True where row i of y certainly belongs to row i of X. `ValueError` for options or data that cannot
        be fitted: a response never seen, counts below zero, labels other than 0 and 1, a mask of another shape.
        """
        config = self._config()
        h_NP, y_NQ = self._read(X, y)
        known_N = _mask(known, len(y_NQ))
        fitted_N = known_N if known_N.any() else ~known_N
        _check_seen(y_NQ[fitted_N])
        spread_Q = np.nanvar(y_NQ, axis=0)
        self._floor_Q = 1e-10 * spread_Q + 1e-300
        found = self._fit_pairs(h_NP[fitted_N], y_NQ[fitted_N])
        permutation_N = places_N = np.arange(len(y_NQ))
        bounds = [_bound(h_NP, y_NQ, found, config)]
        for _ in range(config.max_iter):
            gain_NN = gains(h_NP, y_NQ, found, config.family)
            before_N, permutation_N = permutation_N, assign(gain_NN, known_N, config.moving_cost)
            if len(bounds) > 1 and np.array_equal(before_N, permutation_N):
                break
            paired_NQ = y_NQ[permutation_N]
            found = self._fit_pairs(h_NP, paired_NQ)
            moved = (permutation_N != places_N).sum()
            bounds.append(_bound(h_NP, paired_NQ, found, config) - config.moving_cost * float(moved))
        self._found = found
        self.permutation_ = permutation_N
        self.intercept_, self.coef_ = found.b_PQ[0], found.b_PQ[1:].T
        self.noise_ = found.noise_Q
        self.log_likelihoods_ = bounds
        self.n_iter_ = len(bounds) - 1
        return self

    def _fit_pairs(self, h_NP: Array, y_NQ: Array) -> Coefficients:
        config = self._config()
        return fit_columns(h_NP, y_NQ, config.family, config.ridge, self._floor_Q)

    def _read(self, X: Any, y: Any, reset: bool = True) -> tuple[Array, Array]:
        """A design with an intercept (N, P) and responses (N, Q)."""
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        x_ND = validate_data(self, X, dtype=np.float64, reset=reset)
        y = check_array(y, dtype=np.float64, ensure_2d=False, ensure_all_finite="allow-nan", input_name="y")
        check_consistent_length(x_ND, y)
        y_NQ = y.reshape(len(y), -1)
        self._check_responses(y_NQ)
        if reset:
            self._flat = y.ndim == 1
        elif y_NQ.shape[1] != self._found.b_PQ.shape[1]:
            raise ValueError(f"y has {y_NQ.shape[1]} responses; expected {self._found.b_PQ.shape[1]}, as in the fit")
        return with_intercept(x_ND), y_NQ

    def _check_responses(self, y_NQ: Array) -> None:
        family = self._config().family
        seen = y_NQ[~np.isnan(y_NQ)]
        if family == "gaussian" or not len(seen):
            return
        least, most = seen.min(), seen.max()
        labels = np.isin(seen, (0, 1))
        if family == "logistic" and not labels.all():
            raise ValueError(f"y goes from {least:g} to {most:g}; the logistic family expects 0 and 1")
        if least < 0:
            raise ValueError(f"y goes from {least:g}; the poisson family expects counts of 0 or more")

    def match(self, X: Any, y: Any, known: Any = None) -> Array:
        """Which row of y belongs to each of X (N,) by the fitted coefficients; errors as in `fit`."""
        check_is_fitted(self)
        h_NP, y_NQ = self._read(X, y, reset=False)
        known_N = _mask(known, len(y_NQ))
        config = self._config()
        gain_NN = gains(h_NP, y_NQ, self._found, config.family)
        return assign(gain_NN, known_N, config.moving_cost)

    def log_likelihood(self, X: Any, y: Any) -> Array:
        """Log probability (N,) of rows that are in order, in nats; errors as in `fit`."""
        check_is_fitted(self)
        h_NP, y_NQ = self._read(X, y, reset=False)
        family = self._config().family
        return log_likelihood(h_NP, y_NQ, self._found, family)

    def predict(self, X: Any) -> Array:
        """Expected responses (N,) or (N, Q), as y had in the fit."""
        check_is_fitted(self)
        x_ND = validate_data(self, X, dtype=np.float64, reset=False)
        h_NP = with_intercept(x_ND)
        family = self._config().family
        mean_NQ = mean(h_NP @ self._found.b_PQ, family)
        return mean_NQ[:, 0] if self._flat else mean_NQ

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _check_seen(y_NQ: Array) -> None:
    unseen_Q = np.isnan(y_NQ).all(0)
    if unseen_Q.any():
        first = unseen_Q.argmax()
        raise ValueError(f"response {first} is missing in all {len(y_NQ)} rows of the fit; drop it, or name more rows "
                         "as known")


def _mask(known: Any, rows: int) -> Array:
    if known is None:
        return np.zeros(rows, dtype=bool)
    known_N = np.asarray(known)
    if known_N.dtype != bool or known_N.shape != (rows,):
        raise ValueError(f"known is {known_N.dtype} of shape {known_N.shape}; expected bool of shape ({rows},)")
    return known_N


def _bound(h_NP: Array, y_NQ: Array, found: Coefficients, config: Config) -> float:
    """Log likelihood of paired rows less the ridge's penalty, in nats."""
    likelihood_N = log_likelihood(h_NP, y_NQ, found, config.family)
    penalty = ridge_penalty(found.b_PQ.T, config.ridge)
    return float(likelihood_N.sum() - penalty)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Sixty rows of four responses, six of which changed places."""
    x_ND = torch.randn(60, 2, generator=generator)
    slope_DQ = torch.randn(2, 4, generator=generator)
    noise_NQ = torch.randn(60, 4, generator=generator)
    y_NQ = x_ND @ slope_DQ + 0.3 * noise_NQ
    y_NQ[:6] = y_NQ[:6].roll(1, 0)
    return {
        "estimator": PermutedRegression(),
        "X": x_ND.double().numpy(),
        "y": y_NQ.double().numpy(),
    }
