"""Mixture of regressions: each component a generalised linear model, with constant weights or ones that covariates set.

**Equation:** p(y_g | x_g, z_g) = sum_k pi_k(z_g) prod_{n in g} f(y_n; b_k0 + b_k . x_n, s_k) for the rows of a group g
(one row each where there are no groups), pi_k constant or softmax(a_k0 + a_k . z). f is normal (mean), Poisson (log
rate), Bernoulli (log odds) or gamma (log mean). EM: r_gk proportional to pi_k prod_n f; the M step is a regression of
every component with weights r_gk, and means of r_gk, or a multinomial regression of them on z.

**Shapes:** X (N, D), y (N,), Z (N, Q), groups (N,); `coef_` (K, D), `intercept_` (K,), `spreads_` (K,) (normal:
variances; gamma: one over shapes), `weights_` (K,) mean weights of groups, `gate_coef_` (K, 1 + Q), the first row zero.

**Reference:** Wedel and DeSarbo (1995), A Mixture Likelihood Approach for Generalized Linear Models; Gruen and Leisch
(2008), FlexMix Version 2: Finite Mixtures with Concomitant Variables and Varying and Constant Parameters.

**Differs:** variances are maximum likelihood; `variance="unbiased"` divides by N - P in place of N, as flexmix does,
whose values it gives, and its bound may then fall a little. No component is dropped for being small. A target that
is separated perfectly sends coefficients far out until `tol` or `max_iter` ends it.

**Fails when:** components cross where rows are few; x tells the components apart (weights should then depend on it).

**Cost:** O(N K P^2) a step, Poisson, Bernoulli and gamma some steps of Newton's each.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.base import RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from mixwell.core.method import method
from mixwell.density._ascent import Run, highest
from mixwell.density._gaussian import Array, log_positive
from mixwell.density._options import Configured
from mixwell.density.regression._fits import softmax_fit, start
from mixwell.density.regression._parts import check_at_least_one, ridge_penalty
from mixwell.density.regression._responses import FAMILIES, Response, response
from mixwell.density.regression._rows import Data, Units, gathered, targets


@dataclass(frozen=True)
class Config:
    """Options of the mixture of regressions; `ValueError` for one out of range."""

    n_components: int = 2  # K
    family: Literal["gaussian", "poisson", "bernoulli", "gamma"] = "gaussian"  # f
    missing: Literal["error", "leave_out"] = "error"  # what becomes of rows that lack a value of X, y or Z
    variance: Literal["likeliest", "unbiased"] = "likeliest"  # of the Gaussian family
    ridge: float = 0.0  # penalty on squared slopes of Z, in nats
    reg_covar: float = 1e-6  # smallest variance of a Gaussian component, as a share of y's variance
    tol: float = 1e-8  # stop when a step gains less, in nats a row
    max_iter: int = 1000
    n_init: int = 10  # starts; the likeliest is kept
    init: Literal["random", "kmeans"] = "random"  # cells of random rows, or clusters, of X and y together
    random_state: Any = None  # of the starts

    def __post_init__(self) -> None:
        check_at_least_one(self, "n_components", "n_init", "max_iter")
        _check_choice(self, "family", FAMILIES)
        _check_choice(self, "missing", ("error", "leave_out"))
        _check_choice(self, "variance", ("likeliest", "unbiased"))
        _check_choice(self, "init", ("random", "kmeans"))
        if self.ridge < 0 or self.tol < 0:
            raise ValueError(f"ridge={self.ridge}, tol={self.tol}; expected 0 or more")
        if self.reg_covar <= 0:
            raise ValueError(f"reg_covar is {self.reg_covar}; expected a number above 0")


def _check_choice(config: Config, name: str, known: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value in known:
        return
    *others, last = map(repr, known)
    listed = ", ".join(others)
    raise ValueError(f"{name} is {value!r}; expected {listed} or {last}")


class Params(NamedTuple):
    """Where a fit stands."""

    coef_KP: Array
    spread_K: Array
    gate_KQ: Array


def log_joint(data: Data, params: Params, kind: Response) -> Array:
    """Log weight plus log density of every group under every component (G, K)."""
    y_N1 = data.y_N[:, None]
    seen_N1 = data.seen_N[:, None]
    eta_NK = data.h_NP @ params.coef_KP.T
    log_NK = kind.log_prob(y_N1, eta_NK, params.spread_K)
    told_NK = np.where(seen_N1, log_NK, 0.0)
    summed_GK = data.summed(told_NK)
    return log_gates(data, params) + summed_GK


def log_gates(data: Data, params: Params) -> Array:
    """Log weights of the components in every group (G, K)."""
    return log_softmax(data.z_GQ @ params.gate_KQ.T, axis=1)


def maximise(data: Data, resp_GK: Array, old: Params, kind: Response, ridge: float) -> Params:
    """The M step."""
    weighted_GK = resp_GK * data.weight_G[:, None]
    total_K = weighted_GK.sum(0)
    share_K = total_K / total_K.sum()
    coef_KP = old.coef_KP.copy()
    spread_K = old.spread_K.copy()
    alive = np.flatnonzero(share_K > 1e-12)  # one that lost all rows keeps its shape
    for k in alive:
        weight_G = weighted_GK[:, k]
        weight_N = weight_G[data.group_N]
        coef_KP[k], spread_K[k] = kind.fit(data.h_NP, data.y_N, weight_N, coef_KP[k])
    if data.z_GQ.shape[1] > 1:
        gate_KQ = softmax_fit(data.z_GQ, weighted_GK, old.gate_KQ, ridge)
    else:
        gate_KQ = log_positive(share_K)[:, None]
    return Params(coef_KP, spread_K, gate_KQ)


@method(title="Mixture of regressions", year=1995, tags={"estimator", "em", "responsibilities", "sklearn"})
class RegressionMixture(RegressorMixin, Configured, config=Config):
    """Mixture of generalised linear regressions; see the module's card and `Config`."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None, Z: Any = None) -> RegressionMixture:
        """Fit to X (N, D) and y (N,); returns self.

        sample_weight (N,): frequencies, alike for the rows of a group. groups (N,): labels; the rows of a group have
        one component. Z (N, Q) or (N,): covariates of the weights, alike within a group. Raises a `ValueError` where
        options or data are none that can be fitted.
        """
        config = self._config()
        given = self._data(X, y, sample_weight, groups, Z, reset=True)
        data = given.whole()
        self.n_left_out_ = len(given.y_N) - len(data.y_N)
        G, K = len(data.z_GQ), config.n_components
        if G < K:
            raise ValueError(f"n_samples={G} rows or groups is less than n_components={K}; give more of them.")
        self._kind = _response(config, data)
        units = Units.of(data.h_NP, data.weight_G[data.group_N])
        gate_units = Units.of(data.z_GQ, data.weight_G)
        h_NP = units.design(data.h_NP)
        z_GQ = gate_units.design(data.z_GQ)
        framed = data._replace(h_NP=h_NP, z_GQ=z_GQ)
        rng = check_random_state(config.random_state)
        runs = [_climb(framed, self._kind, config, rng) for _ in range(config.n_init)]
        run = highest(runs)
        if not run.converged and config.max_iter > 1:
            warnings.warn(f"EM did not converge in max_iter={config.max_iter} steps; increase max_iter or tol.",
                          ConvergenceWarning, stacklevel=2)
        coef_KP = units.back(run.state.coef_KP)
        gate_KQ = gate_units.back(run.state.gate_KQ)
        self._params = Params(coef_KP, run.state.spread_K, gate_KQ - gate_KQ[0])
        self._publish(run, data)
        return self

    def _publish(self, run: Run[Params], data: Data) -> None:
        """Set the fitted attributes."""
        coef_KP, self.spreads_, self.gate_coef_ = self._params
        self.intercept_ = coef_KP[:, 0]
        self.coef_ = coef_KP[:, 1:]
        log_GK = log_gates(data, self._params)
        gates_GK = np.exp(log_GK)
        self.weights_ = np.average(gates_GK, axis=0, weights=data.weight_G)
        self.lower_bounds_ = run.bounds
        self.converged_ = run.converged
        self.n_iter_ = len(run.bounds)

    def _columns(self, X: Any, reset: bool) -> Array:
        finite: Any = "allow-nan" if self.missing == "leave_out" else True
        return validate_data(self, X, dtype=np.float64, ensure_all_finite=finite, reset=reset)

    def _data(self, X: Any, y: Any, sample_weight: Any, groups: Any, Z: Any, reset: bool) -> Data:
        """What was given, checked."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        leave = self.missing == "leave_out"
        x_ND = self._columns(X, reset)
        y_N = targets(y, len(x_ND), leave)
        _refuse_targets(self.family, y_N)
        data = gathered(x_ND, y_N, groups, Z, sample_weight, leave)
        if not reset:
            self._refuse_other_covariates(data)
        return data

    def _refuse_other_covariates(self, data: Data) -> None:
        given = data.z_GQ.shape[1] - 1
        known = self.gate_coef_.shape[1] - 1
        if given != known:
            raise ValueError(f"Z has {given} columns; expected {known}, as in fit.")

    def _unseen(self, X: Any, Z: Any) -> Data:
        """Rows without targets."""
        check_is_fitted(self)
        x_ND = self._columns(X, reset=False)
        nothing_N = np.full(len(x_ND), np.nan)
        data = gathered(x_ND, nothing_N, None, Z, None, self.missing == "leave_out")
        self._refuse_other_covariates(data)
        return data

    def predict_gates(self, X: Any, Z: Any = None) -> Array:
        """Weights of the components at every row (N, K), before a target is seen; an error before `fit`."""
        data = self._unseen(X, Z)
        log_NK = log_gates(data, self._params)
        return np.exp(log_NK)

    def predict_components(self, X: Any) -> Array:
        """Every component's mean of y (N, K); NaN where a row lacks a value. An error before `fit`."""
        check_is_fitted(self)
        x_ND = self._columns(X, reset=False)
        return self._kind.mean(x_ND @ self.coef_.T + self.intercept_)

    def predict(self, X: Any, Z: Any = None) -> Array:
        """Mean of y (N,), over components by their weights; NaN where a row lacks a value. An error before `fit`."""
        gates_NK = self.predict_gates(X, Z)
        return (gates_NK * self.predict_components(X)).sum(1)

    def _log_joint(self, X: Any, y: Any, groups: Any, Z: Any) -> tuple[Array, Data]:
        check_is_fitted(self)
        data = self._data(X, y, None, groups, Z, reset=False)
        return log_joint(data, self._params, self._kind), data

    def log_likelihood(self, X: Any, y: Any, groups: Any = None, Z: Any = None) -> Array:
        """log p(y | x, z) of every row (N,), or of groups in the order of sorted labels (G,), in nats.

        A row that lacks a value of X or y says nothing, and counts as zero; NaN where one of Z is missing. Raises as
        `fit`.
        """
        log_GK, _ = self._log_joint(X, y, groups, Z)
        return logsumexp(log_GK, axis=1)

    def responsibilities(self, X: Any, y: Any, groups: Any = None, Z: Any = None) -> Array:
        """Probability of every component once the targets are seen (N, K), one for all rows of a group.

        Raises as `fit`.
        """
        log_GK, data = self._log_joint(X, y, groups, Z)
        resp_GK = softmax(log_GK, axis=1)
        return resp_GK[data.group_N]

    def n_parameters(self) -> int:
        """Number of free parameters; an error before `fit`."""
        check_is_fitted(self)
        coef_KP, spread_K, gate_KQ = self._params
        spreads = len(spread_K) if self._kind.spreads else 0
        return coef_KP.size + spreads + gate_KQ[1:].size

    def bic(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None, Z: Any = None) -> float:
        """Bayesian information criterion of y, rows counted by their weights; lower is better. Raises as `fit`."""
        return self._criterion(X, y, sample_weight, groups, Z, math.log)

    def aic(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None, Z: Any = None) -> float:
        """Akaike information criterion of y; lower is better. Raises as `fit`."""
        return self._criterion(X, y, sample_weight, groups, Z, lambda rows: 2.0)

    def _criterion(self, X: Any, y: Any, sample_weight: Any, groups: Any, Z: Any,
                   price: Callable[[float], float]) -> float:
        check_is_fitted(self)
        given = self._data(X, y, sample_weight, groups, Z, reset=False)
        data = given.whole()
        log_GK = log_joint(data, self._params, self._kind)
        log_G = logsumexp(log_GK, axis=1)
        log_likelihood = data.weight_G @ log_G
        penalty = price(data.weight) * self.n_parameters()
        return float(penalty - 2 * log_likelihood)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "leave_out"
        return tags


def _response(config: Config, data: Data) -> Response:
    """The components' family."""
    if config.family != "gaussian":
        return response(config.family)
    variance = float(data.y_N.var())
    floor = config.reg_covar * max(variance, 1e-300)
    if config.variance == "likeliest":
        return response("gaussian", floor=floor)
    P = data.h_NP.shape[1]
    left = data.weight - P
    if left <= 0:
        raise ValueError(f"variance='unbiased' with {data.weight:g} rows for {P} coefficients; give more rows, or "
                         "variance='likeliest'.")
    return response("gaussian", floor=floor, inflation=data.weight / left)


def _refuse_targets(family: str, y_N: Array) -> None:
    """Refuse what the family cannot have."""
    missing_N = np.isnan(y_N)
    seen_N = y_N[~missing_N]
    kind = response(family)
    wrong_N, expected = kind.refused(seen_N)
    found = seen_N[wrong_N]
    if len(found):
        raise ValueError(f"y holds {found[0]:g}; family {family!r} takes {expected}")


def _climb(data: Data, kind: Response, config: Config, rng: np.random.RandomState) -> Run[Params]:
    """EM from one start. Unbiased variances may lower the bound, which the shared ascent would take for an end."""
    first = _first(data, kind, config, rng)
    run = Run(first)
    for _ in range(config.max_iter):
        log_GK = log_joint(data, run.state, kind)
        log_G1 = logsumexp(log_GK, axis=1, keepdims=True)
        likelihood = float(data.weight_G @ log_G1[:, 0])
        penalty = ridge_penalty(run.state.gate_KQ, config.ridge)
        bound = (likelihood - penalty) / data.weight
        gain = bound - run.bounds[-1] if run.bounds else math.inf
        run.bounds.append(bound)
        run.converged = abs(gain) < config.tol
        if run.converged:
            break
        resp_GK = np.exp(log_GK - log_G1)
        run.state = maximise(data, resp_GK, run.state, kind, config.ridge)
    return run


def _first(data: Data, kind: Response, config: Config, rng: np.random.RandomState) -> Params:
    """Parameters to begin with."""
    K = config.n_components
    P = data.h_NP.shape[1]
    Q = data.z_GQ.shape[1]
    x_ND = data.h_NP[:, 1:]
    y_N1 = data.y_N[:, None]
    cell_NK = start(x_ND, y_N1, K, config.init, rng)
    resp_GK = data.summed(cell_NK)
    resp_GK /= resp_GK.sum(1, keepdims=True)
    coef_KP = np.zeros((K, P))
    gate_KQ = np.zeros((K, Q))
    nothing = Params(coef_KP, np.ones(K), gate_KQ)
    return maximise(data, resp_GK, nothing, kind, config.ridge)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two lines that cross."""
    uniform_N = torch.rand(120, generator=generator, dtype=torch.float64)
    noise_N = torch.randn(120, generator=generator, dtype=torch.float64)
    x_N = 2 * uniform_N - 1
    number_N = torch.arange(120)
    rising_N = number_N % 2 == 0
    slope_N = torch.where(rising_N, 2.0, -2.0)
    y_N = slope_N * x_N + 0.1 * noise_N
    x_ND = x_N[:, None]
    estimator = RegressionMixture(n_init=2, random_state=0)
    return {
        "estimator": estimator,
        "X": x_ND.numpy(),
        "y": y_N.numpy(),
    }
