"""Gated regressions: gates, experts, the EM that fits them together, and estimators around it, in float64.

N rows, D columns, P columns of a design (the first is the intercept), K experts, Q responses, C classes.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln, log_softmax, logsumexp, softmax
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from mixwell.density._ascent import Run, ascend, highest
from mixwell.density._gaussian import Array, log_positive, log_prob
from mixwell.density._options import Configured
from mixwell.density.regression._fits import least_squares, poisson_fit, raise_eigenvalues, softmax_fit, start

Params = dict[str, Array]


def with_intercept(x_ND: Array) -> Array:
    """A column of ones before the others."""
    return np.column_stack([np.ones(len(x_ND)), x_ND])


def powers(x_ND: Array, degree: int) -> Array:
    """Intercept and the powers 1 to `degree` of every column (N, 1 + degree D), without cross terms."""
    ones_N = np.ones(len(x_ND))
    raised = [x_ND**p for p in range(1, degree + 1)]
    return np.column_stack([ones_N, *raised])


def ridge_penalty(coef: Array, strength: float) -> float:
    """Half the strength times the squares of coefficients (..., P) other than intercepts, in nats."""
    slopes = coef[..., 1:]
    return 0.5 * strength * float((slopes**2).sum())


class Gates(ABC):
    """Weights over experts as a function of a row."""

    @abstractmethod
    def log_joint(self, x_NP: Array, params: Params) -> Array:
        """What the likelihood counts for a row and an expert (N, K); softmax over experts gives the gates."""

    @abstractmethod
    def maximise(self, x_NP: Array, resp_NK: Array, params: Params | None) -> Params:
        """Parameters that do not lower sum resp * log_joint - penalty."""

    def penalty(self, params: Params) -> float:
        """Subtracted from the log-likelihood, in nats."""
        return 0.0


class Experts(ABC):
    """Conditional distributions of the target."""

    @abstractmethod
    def log_prob(self, h_NP: Array, y: Array, params: Params) -> Array:
        """(N, K), in nats."""

    @abstractmethod
    def mean(self, h_NP: Array, params: Params) -> Array:
        """(N, K, Q), or class probabilities (N, K, C)."""

    @abstractmethod
    def maximise(self, h_NP: Array, y: Array, resp_NK: Array, params: Params | None) -> Params:
        """Parameters that do not lower sum resp * log_prob - penalty."""

    def penalty(self, params: Params) -> float:
        """Subtracted from the log-likelihood, in nats."""
        return 0.0


@dataclass(frozen=True)
class SoftmaxGates(Gates):
    """pi_k(x) proportional to exp(w_k . x)."""

    ridge: float  # on squared coefficients other than intercepts, in nats

    def log_joint(self, x_NP: Array, params: Params) -> Array:
        return log_softmax(x_NP @ params["gate_coef"].T, axis=1)

    def maximise(self, x_NP: Array, resp_NK: Array, params: Params | None) -> Params:
        shape = resp_NK.shape[1], x_NP.shape[1]
        start = np.zeros(shape) if params is None else params["gate_coef"]
        return {"gate_coef": softmax_fit(x_NP, resp_NK, start, self.ridge)}

    def penalty(self, params: Params) -> float:
        return ridge_penalty(params["gate_coef"], self.ridge)


@dataclass(frozen=True)
class GaussianGates(Gates):
    """pi_k(x) proportional to w_k N(x; c_k, Gamma_k); EM climbs the likelihood of rows and targets together."""

    floor: float  # smallest variance

    def log_joint(self, x_ND: Array, params: Params) -> Array:
        normals = zip(params["gate_means"], params["gate_covariances"])
        columns = [log_prob(x_ND - mean_D, covariance_DD) for mean_D, covariance_DD in normals]
        return np.column_stack(columns) + log_positive(params["gate_weights"])

    def maximise(self, x_ND: Array, resp_NK: Array, params: Params | None) -> Params:
        count_K = resp_NK.sum(0)
        safe_K = np.maximum(count_K, 1e-300)
        means_KD = resp_NK.T @ x_ND / safe_K[:, None]
        covariances = []
        for mean_D, resp_N, count in zip(means_KD, resp_NK.T, safe_K):
            covariance_DD = _covariance(x_ND - mean_D, resp_N, count)
            covariances.append(raise_eigenvalues(covariance_DD, self.floor))
        new = {
            "gate_weights": count_K / count_K.sum(),
            "gate_means": means_KD,
            "gate_covariances": np.stack(covariances),
        }
        return keep_dead(new, params, count_K, ("gate_means", "gate_covariances"))


def _covariance(rest_NQ: Array, resp_N: Array, total: float) -> Array:
    """Mean (Q, Q) of the products of what a fit leaves, weighted by responsibilities."""
    weighted_NQ = rest_NQ * resp_N[:, None]
    return weighted_NQ.T @ rest_NQ / total


@dataclass(frozen=True)
class GaussianExperts(Experts):
    """Normal targets with linear means; covariances are zero outside `blocks` of responses."""

    floor: float  # smallest variance
    blocks: tuple[tuple[int, ...], ...] | None = None  # None: one block of all responses

    def mean(self, h_NP: Array, params: Params) -> Array:
        return np.einsum("np,kpq->nkq", h_NP, params["coef"])

    def log_prob(self, h_NP: Array, y: Array, params: Params) -> Array:
        parts = zip(params["coef"], params["covariances"])
        columns = [log_prob(y - h_NP @ coef_PQ, covariance_QQ) for coef_PQ, covariance_QQ in parts]
        return np.column_stack(columns)

    def maximise(self, h_NP: Array, y: Array, resp_NK: Array, params: Params | None) -> Params:
        coef, covariances = [], []
        for resp_N in resp_NK.T:
            coef_PQ = least_squares(h_NP, y, resp_N)
            rest_NQ = y - h_NP @ coef_PQ
            total = max(resp_N.sum(), 1e-300)
            sample_QQ = _covariance(rest_NQ, resp_N, total)
            coef.append(coef_PQ)
            covariances.append(self._blocked(sample_QQ))
        new = {
            "coef": np.stack(coef),
            "covariances": np.stack(covariances),
        }
        return keep_dead(new, params, resp_NK.sum(0), ("coef", "covariances"))

    def _blocked(self, sample_QQ: Array) -> Array:
        result_QQ = np.zeros_like(sample_QQ)
        whole = tuple(range(len(sample_QQ)))
        for block in self.blocks or (whole,):
            index = np.ix_(block, block)
            own = sample_QQ[index]
            result_QQ[index] = raise_eigenvalues(own, self.floor)
        return result_QQ


@dataclass(frozen=True)
class MultinomialExperts(Experts):
    """Classes with probabilities softmax(H a_k)."""

    classes: int
    ridge: float

    def _logits(self, h_NP: Array, params: Params) -> Array:
        return np.einsum("np,kcp->nkc", h_NP, params["coef"])

    def mean(self, h_NP: Array, params: Params) -> Array:
        return softmax(self._logits(h_NP, params), axis=2)

    def log_prob(self, h_NP: Array, y: Array, params: Params) -> Array:
        log_NKC = log_softmax(self._logits(h_NP, params), axis=2)
        rows_N = np.arange(len(y))
        return log_NKC[rows_N, :, y]

    def maximise(self, h_NP: Array, y: Array, resp_NK: Array, params: Params | None) -> Params:
        K, C, P = resp_NK.shape[1], self.classes, h_NP.shape[1]
        start = np.zeros((K, C, P))
        if params is not None:
            start = params["coef"]
        hot_NC = np.eye(C)[y]
        fits = []
        for resp_N, w_CP in zip(resp_NK.T, start):
            target_NC = hot_NC * resp_N[:, None]
            found_CP = softmax_fit(h_NP, target_NC, w_CP, self.ridge)
            fits.append(found_CP)
        return {"coef": np.stack(fits)}

    def penalty(self, params: Params) -> float:
        return ridge_penalty(params["coef"], self.ridge)


@dataclass(frozen=True)
class PoissonExperts(Experts):
    """Counts with rate exp(H b_k)."""

    ridge: float

    def mean(self, h_NP: Array, params: Params) -> Array:
        log_rate_NK = h_NP @ params["coef"].T
        return np.exp(log_rate_NK)[..., None]

    def log_prob(self, h_NP: Array, y: Array, params: Params) -> Array:
        log_rate_NK = h_NP @ params["coef"].T
        return y * log_rate_NK - np.exp(log_rate_NK) - gammaln(y + 1)

    def maximise(self, h_NP: Array, y: Array, resp_NK: Array, params: Params | None) -> Params:
        start = np.zeros((resp_NK.shape[1], h_NP.shape[1]))
        if params is not None:
            start = params["coef"]
        y_N = y[:, 0]
        fits = []
        for resp_N, b_P in zip(resp_NK.T, start):
            found_P = poisson_fit(h_NP, y_N, resp_N, b_P, self.ridge)
            fits.append(found_P)
        return {"coef": np.stack(fits)}

    def penalty(self, params: Params) -> float:
        return ridge_penalty(params["coef"], self.ridge)


def keep_dead(new: Params, old: Params | None, count_K: Array, names: Sequence[str]) -> Params:
    """Where an expert has no rows, what it was before."""
    dead_K = count_K < 1e-12 * count_K.sum()
    if old is not None and dead_K.any():
        for name in names:
            new[name][dead_K] = old[name][dead_K]
    return new


@dataclass
class Problem:
    """What is fitted to what."""

    gates: Gates
    experts: Experts
    gate_NP: Array
    expert_NP: Array
    y: Array

    def log_joint(self, params: Params) -> Array:
        """Log gate plus log expert (N, K)."""
        log_gate_NK = self.gates.log_joint(self.gate_NP, params)
        log_expert_NK = self.experts.log_prob(self.expert_NP, self.y, params)
        return log_gate_NK + log_expert_NK

    def maximise(self, resp_NK: Array, params: Params | None) -> Params:
        """The M step."""
        gates = self.gates.maximise(self.gate_NP, resp_NK, params)
        experts = self.experts.maximise(self.expert_NP, self.y, resp_NK, params)
        return gates | experts

    def step(self, params: Params) -> tuple[Params, float]:
        """New parameters, and the mean penalised log-likelihood of the old ones, in nats a row."""
        log_NK = self.log_joint(params)
        log_N1 = logsumexp(log_NK, axis=1, keepdims=True)
        resp_NK = np.exp(log_NK - log_N1)
        likelihood = float(log_N1.sum())
        bound = likelihood - self.gates.penalty(params) - self.experts.penalty(params)
        new = self.maximise(resp_NK, params)
        return new, bound / len(log_NK)


def check_common(config: Any) -> None:
    """Refuse ranges (`ValueError`) that every gated regression refuses."""
    check_at_least_one(config, "n_experts", "n_init", "max_iter")
    if config.tol < 0:
        raise ValueError(f"tol is {config.tol}; expected 0 or more")
    if config.init not in ("kmeans", "random"):
        raise ValueError(f"init is {config.init!r}; expected 'kmeans' or 'random'")


def check_at_least_one(config: Any, *names: str) -> None:
    """Refuse options (`ValueError`) below one."""
    for name in names:
        value = getattr(config, name)
        if value < 1:
            raise ValueError(f"{name} is {value}; expected 1 or more")


class GatedEstimator(Configured):
    """What gated regressors and classifiers share. Columns are standardised; coefficients are in those units.

    Fitted: the parameters' names with an underscore (`coef_`, `gate_coef_`, ...), `shift_` and `scale_` (D,),
    `lower_bounds_` (mean penalised log-likelihood in nats a row, never falling), `n_iter_`, `converged_`.
    """

    _params: Params
    _gates: Gates
    _experts: Experts

    def _gate_design(self, z_ND: Array) -> Array:
        return with_intercept(z_ND)

    def _expert_design(self, z_ND: Array) -> Array:
        return with_intercept(z_ND)

    def _standardise(self, x_ND: Array) -> Array:
        """Note the columns' places and scales, and return rows in those units."""
        self.shift_ = x_ND.mean(0)
        spread_D = x_ND.std(0)
        largest_D = np.abs(x_ND).max(0)
        rounding_D = 1e-12 * largest_D
        self.scale_ = np.where(spread_D > rounding_D, spread_D, 1.0)
        return self._in_units(x_ND)

    def _in_units(self, x_ND: Array) -> Array:
        return (x_ND - self.shift_) / self.scale_

    def _designs(self, X: Any) -> tuple[Array, Array]:
        check_is_fitted(self)
        x_ND = validate_data(self, X, dtype=np.float64, reset=False)
        z_ND = self._in_units(x_ND)
        return self._gate_design(z_ND), self._expert_design(z_ND)

    def _fit_gated(self, x_ND: Array, y: Array, y_NQ: Array, gates: Gates, experts: Experts, config: Any) -> None:
        """Run every start and keep the best; `y` is what the experts read, `y_NQ` its numbers for the starts."""
        if len(x_ND) < config.n_experts:
            raise ValueError(f"n_samples={len(x_ND)} is less than n_experts={config.n_experts}; give more rows")
        z_ND = self._standardise(x_ND)
        gate_NP = self._gate_design(z_ND)
        expert_NP = self._expert_design(z_ND)
        problem = Problem(gates, experts, gate_NP, expert_NP, y)
        rng = check_random_state(config.random_state)
        runs = []
        for _ in range(config.n_init):
            resp_NK = start(z_ND, y_NQ, config.n_experts, config.init, rng)
            first = problem.maximise(resp_NK, None)
            run = ascend(problem.step, first, tol=config.tol, max_iter=config.max_iter)
            runs.append(run)
        best = highest(runs)
        if not best.converged and config.max_iter > 1:
            warnings.warn(f"EM did not converge in max_iter={config.max_iter} steps; increase max_iter or tol.",
                          ConvergenceWarning, stacklevel=3)
        self._gates, self._experts = gates, experts
        self._publish(best)

    def _publish(self, run: Run[Params]) -> None:
        self._params = run.state
        for name, value in run.state.items():
            setattr(self, name + "_", value)
        self.lower_bounds_ = run.bounds
        self.converged_ = run.converged
        self.n_iter_ = len(run.bounds)

    def _log_joint(self, X: Any, y: Array) -> Array:
        gate_NP, expert_NP = self._designs(X)
        joint_NK = self._gates.log_joint(gate_NP, self._params)
        log_gate_NK = log_softmax(joint_NK, axis=1)
        log_expert_NK = self._experts.log_prob(expert_NP, y, self._params)
        return log_gate_NK + log_expert_NK

    def predict_gates(self, X: Any) -> Array:
        """Weights of the experts at every row (N, K), before a target is seen; an error before `fit`."""
        gate_NP, _ = self._designs(X)
        joint_NK = self._gates.log_joint(gate_NP, self._params)
        return softmax(joint_NK, axis=1)

    def predict_experts(self, X: Any) -> Array:
        """Every expert's mean (N, K, Q), or class probabilities (N, K, C); an error before `fit`."""
        _, expert_NP = self._designs(X)
        return self._experts.mean(expert_NP, self._params)

    def log_likelihood(self, X: Any, y: Any) -> Array:
        """log p(y | x) of every row (N,), in nats; a `ValueError` for targets that the experts cannot have."""
        log_joint_NK = self._log_joint(X, self._targets(y))
        return logsumexp(log_joint_NK, axis=1)

    def responsibilities(self, X: Any, y: Any) -> Array:
        """Probability of every expert once the target is seen (N, K); raises as `log_likelihood`."""
        log_joint_NK = self._log_joint(X, self._targets(y))
        return softmax(log_joint_NK, axis=1)

    def n_parameters(self) -> int:
        """Number of free parameters; an error before `fit`."""
        check_is_fitted(self)
        return count_parameters(self._params, self._experts)

    def bic(self, X: Any, y: Any) -> float:
        """Bayesian information criterion of y given X; lower is better."""
        log_N = self.log_likelihood(X, y)
        penalty = self.n_parameters() * math.log(len(log_N))
        return -2 * float(log_N.sum()) + penalty

    def _targets(self, y: Any) -> Array:
        raise NotImplementedError

    def _mixed(self, X: Any) -> Array:
        gates_NK = self.predict_gates(X)
        means_NKQ = self.predict_experts(X)
        return np.einsum("nk,nkq->nq", gates_NK, means_NKQ)


def count_parameters(params: Params, experts: Experts) -> int:
    """Free parameters of gates and experts: covariances count once, softmax coefficients less the free shift."""
    K = len(params["coef"])
    total = 0
    for name, value in params.items():
        if name == "gate_coef":
            total += value.size // K * (K - 1)
        elif name == "gate_weights":
            total += K - 1
        elif name == "covariances":
            blocks = getattr(experts, "blocks", None) or (range(value.shape[1]),)
            total += K * sum(_symmetric_entries(len(block)) for block in blocks)
        elif name == "gate_covariances":
            total += K * _symmetric_entries(value.shape[1])
        elif name == "coef" and isinstance(experts, MultinomialExperts):
            total += value.size // experts.classes * (experts.classes - 1)
        else:
            total += value.size
    return total


def _symmetric_entries(size: int) -> int:
    return size * (size + 1) // 2


def _as_columns(y: Any) -> Array:
    """Targets (N, Q) in float64."""
    y = np.asarray(y, dtype=np.float64)
    return y.reshape(len(y), -1)


class GatedRegressor(RegressorMixin, GatedEstimator):
    """A gated regression of numbers, with scikit-learn's conventions: `fit`, `predict`, `score` (R^2)."""

    def _read(self, X: Any, y: Any, multi_output: bool = True) -> tuple[Array, Array]:
        x_ND, y_N = validate_data(self, X, y, dtype=np.float64, multi_output=multi_output, y_numeric=True)
        self._flat = np.ndim(y_N) == 1
        return x_ND, _as_columns(y_N)

    def _targets(self, y: Any) -> Array:
        return _as_columns(y)

    def predict(self, X: Any) -> Array:
        """Mean of y given x: the experts' means weighted by the gates, (N,) or (N, Q)."""
        mean_NQ = self._mixed(X)
        return mean_NQ[:, 0] if self._flat else mean_NQ

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class GatedClassifier(ClassifierMixin, GatedEstimator):
    """A gated regression of classes, with scikit-learn's conventions: `fit`, `predict`, `predict_proba`, `score`."""

    def _read(self, X: Any, y: Any) -> tuple[Array, Array]:
        x_ND, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        self.classes_, y_N = np.unique(labels, return_inverse=True)
        C = len(self.classes_)
        if C < 2:
            raise ValueError(f"y has {C} class; expected two or more classes")
        return x_ND, y_N

    def _targets(self, y: Any) -> Array:
        y = np.asarray(y)
        after = np.searchsorted(self.classes_, y)
        index = after.clip(max=len(self.classes_) - 1)
        unknown = self.classes_[index] != y
        if unknown.any():
            raise ValueError(f"y holds {y[unknown][0]!r}, which was not among the classes in fit")
        return index

    def predict_proba(self, X: Any) -> Array:
        """Class probabilities (N, C)."""
        return self._mixed(X)

    def predict(self, X: Any) -> Array:
        """The most probable class (N,)."""
        best_N = self.predict_proba(X).argmax(1)
        return self.classes_[best_N]
