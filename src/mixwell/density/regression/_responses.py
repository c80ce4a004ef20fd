"""What a target may be, given linear predictors: log densities, means, and weighted fits, in float64.

N rows, P columns of a design (the first is the intercept), K components.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, expit, gammaln

from mixwell.density._gaussian import Array, log_normal
from mixwell.density.regression._fits import BERNOULLI, GAMMA, POISSON, Link, least_squares, link_fit


class Fit(NamedTuple):
    """Coefficients (P,) of one component, and how targets spread about its predictor: 1 where that is not free."""

    coef_P: Array
    spread: float


def weighted_mean(value_N: Array, weight_N: Array) -> float:
    """Of values, zero where nothing weighs."""
    total = max(weight_N.sum(), 1e-300)
    return float(weight_N @ value_N) / total


class Response(ABC):
    """A family of targets."""

    spreads: ClassVar[bool] = True  # whether `spread` is a free number

    @abstractmethod
    def log_prob(self, y_N1: Array, eta_NK: Array, spread_K: Array) -> Array:
        """(N, K), in nats."""

    @abstractmethod
    def mean(self, eta_NK: Array) -> Array:
        """(N, K)."""

    @abstractmethod
    def fit(self, h_NP: Array, y_N: Array, weight_N: Array, old_P: Array) -> Fit:
        """The likeliest coefficients and spread for weighted rows, looked for from old coefficients."""

    def refused(self, y_N: Array) -> tuple[Array, str]:
        """Which targets (N,) the family cannot have, and what it expects."""
        return np.zeros(len(y_N), bool), "numbers"


@dataclass(frozen=True)
class Normal(Response):
    """The predictor is the mean, the spread the variance."""

    floor: float = 0.0  # smallest variance
    inflation: float = 1.0  # of the variance, for what the coefficients take

    def log_prob(self, y_N1: Array, eta_NK: Array, spread_K: Array) -> Array:
        gap_NK = y_N1 - eta_NK
        log_scale_K = 0.5 * np.log(spread_K)
        return log_normal(gap_NK**2 / spread_K, log_scale_K)

    def mean(self, eta_NK: Array) -> Array:
        return eta_NK

    def fit(self, h_NP: Array, y_N: Array, weight_N: Array, old_P: Array) -> Fit:
        coef_P1 = least_squares(h_NP, y_N[:, None], weight_N)
        coef_P = coef_P1[:, 0]
        gap_N = y_N - h_NP @ coef_P
        variance = self.inflation * weighted_mean(gap_N**2, weight_N)
        return Fit(coef_P, max(variance, self.floor))


@dataclass(frozen=True)
class Linked(Response):
    """A predictor that a link maps to the mean."""

    link: ClassVar[Link]

    def fit(self, h_NP: Array, y_N: Array, weight_N: Array, old_P: Array) -> Fit:
        coef_P = link_fit(self.link, h_NP, y_N, weight_N, old_P, ridge=0.0)
        return Fit(coef_P, 1.0)


class Counts(Linked):
    """Poisson counts, whose rate is the predictor's exponential."""

    spreads = False
    link = POISSON

    def log_prob(self, y_N1: Array, eta_NK: Array, spread_K: Array) -> Array:
        return POISSON.kernel(y_N1, eta_NK) - gammaln(y_N1 + 1)

    def mean(self, eta_NK: Array) -> Array:
        return np.exp(eta_NK)

    def refused(self, y_N: Array) -> tuple[Array, str]:
        broken_N = y_N != np.floor(y_N)
        return broken_N | (y_N < 0), "counts"


class Binary(Linked):
    """Zeros and ones, whose log odds are the predictor."""

    spreads = False
    link = BERNOULLI

    def log_prob(self, y_N1: Array, eta_NK: Array, spread_K: Array) -> Array:
        return BERNOULLI.kernel(y_N1, eta_NK)

    def mean(self, eta_NK: Array) -> Array:
        return expit(eta_NK)

    def refused(self, y_N: Array) -> tuple[Array, str]:
        return ~np.isin(y_N, (0, 1)), "zeros and ones"


class Positive(Linked):
    """Gamma variables, whose mean is the predictor's exponential; the spread is one over their shape."""

    link = GAMMA

    def log_prob(self, y_N1: Array, eta_NK: Array, spread_K: Array) -> Array:
        shape_K = 1 / spread_K
        constant_K = shape_K * np.log(shape_K) - gammaln(shape_K)
        kernel_NK = shape_K * GAMMA.kernel(y_N1, eta_NK)
        base_NK = (shape_K - 1) * np.log(y_N1)
        return kernel_NK + base_NK + constant_K

    def mean(self, eta_NK: Array) -> Array:
        return np.exp(eta_NK)

    def fit(self, h_NP: Array, y_N: Array, weight_N: Array, old_P: Array) -> Fit:
        coef_P, _ = super().fit(h_NP, y_N, weight_N, old_P)
        log_ratio_N = np.log(y_N) - h_NP @ coef_P
        excess_N = np.expm1(log_ratio_N) - log_ratio_N
        excess = weighted_mean(excess_N, weight_N)
        return Fit(coef_P, gamma_spread(excess))

    def refused(self, y_N: Array) -> tuple[Array, str]:
        return y_N <= 0, "numbers above 0"


LEAST_SPREAD, LARGEST_SPREAD = 1e-6, 1e6  # of gamma variables


def gamma_spread(excess: float) -> float:
    """One over the likeliest shape, where y / mean - 1 - log(y / mean) has this weighted mean."""
    def slope(log_shape: float) -> float:
        shape = math.exp(log_shape)
        return log_shape - float(digamma(shape)) - excess

    low = -math.log(LARGEST_SPREAD)
    high = -math.log(LEAST_SPREAD)
    if slope(high) > 0:
        return LEAST_SPREAD
    if slope(low) < 0:
        return LARGEST_SPREAD
    log_shape = brentq(slope, low, high, xtol=1e-12)
    return math.exp(-log_shape)


FAMILIES = ("gaussian", "poisson", "bernoulli", "gamma")


def response(family: str, **of_normal: Any) -> Response:
    """The family of this name; what is said of a normal one's variance goes to it alone."""
    if family == "gaussian":
        return Normal(**of_normal)
    kinds: dict[str, type[Response]] = {"poisson": Counts, "bernoulli": Binary, "gamma": Positive}
    return kinds[family]()
