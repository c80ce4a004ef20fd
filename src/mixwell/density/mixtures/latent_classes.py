"""Latent class model: classes that indicators measure, and what they depend on or bring about, in one to three steps.

**Equation:** p(x, z) = sum_k p(k) p(x | k) p(z | k) for outcomes z, p(x | z) = sum_k softmax_k(b_k0 + b_k . z) p(x | k)
for covariates z. One step climbs all of it by EM. Two steps fit p(x) first, and hold its parameters while the rest is
fitted. Three steps fit p(x), assign rows (a_ns, modal or the posterior r_ns itself), and fit the rest to what was
assigned: with weights a_nk as they are; with weights a D^-1 (BCH); or by EM with prod_s D_ks^a_ns in the place of
p(x_n | k) (ML), where D_ks = sum_n r_nk a_ns / sum_n r_nk is how often class k is taken for s.

**Shapes:** X (N, D) indicators, Z (N,) or (N, Q); `weights_` (K,), `measurement_` and `outcomes_` fitted mixtures, or
`intercept_` (K,) and `coef_` (K, Q), both zero for the first class; `assignment_` D (K, K), of three steps.

**Reference:** Bolck, Croon, Hagenaars (2004), Estimating Latent Structure Models with Categorical Variables: One-Step
Versus Three-Step Estimators; Vermunt (2010), Latent Class Modeling with Covariates: Two Improved Three-Step Approaches;
Bakk, Kuha (2018), Two-Step Estimation of Models Between Latent Classes and External Variables.

**Differs:** the measurement model, and that of outcomes, is any mixture of this package, with columns of several kinds
a `ProductMixture`. Sample weights count in all steps. EM starts from the fitted measurement model.

**Fails when:** classes are so badly told apart that D is near singular: BCH then asks for negative shares or variances
(`ValueError`); covariates separate the classes perfectly (`ridge` keeps coefficients finite).

**Cost:** the measurement model's fit, and one E and M step of both parts a step; Newton steps O(N K^2 Q^2).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp, softmax
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, get_tags
from sklearn.utils.validation import check_is_fitted

from mixwell.core.method import method
from mixwell.density._ascent import ascend
from mixwell.density._gaussian import Array, log_positive
from mixwell.density._options import Configured
from mixwell.density.mixtures._parts import MixtureEstimator
from mixwell.density.mixtures._scores import as_array
from mixwell.density.mixtures._structural import Covariates, Outcomes
from mixwell.density.mixtures.categorical import CategoricalMixture
from mixwell.density.mixtures.em.assigned import Emission
from mixwell.density.mixtures.em.inputs import checked_weights
from mixwell.density.mixtures.em.loop import Params, select
from mixwell.density.mixtures.em.workers import Workers

COVARIATES = "covariates"


@dataclass(frozen=True)
class Config:
    """Options of a latent class model; `ValueError` for one out of range."""

    n_components: int = 2  # K
    _: KW_ONLY
    measurement: Any = None  # an unfitted mixture of the indicators; None: CategoricalMixture()
    structural: Any = None  # what Z is: "covariates", or an unfitted mixture of outcomes; None: there is no Z
    n_steps: Literal[1, 2, 3] = 1
    correction: Literal["bch", "ml"] | None = None  # of three steps
    assignment: Literal["modal", "soft"] = "modal"  # of three steps
    ridge: float = 0.0  # penalty on squared slopes of covariates, in nats
    tol: float = 1e-8  # stop when a step gains less, in nats a row
    max_iter: int = 1000
    n_init: int = 10  # starts of the measurement model
    random_state: Any = None

    def __post_init__(self) -> None:
        if self.n_steps not in (1, 2, 3) or self.assignment not in ("modal", "soft"):
            raise ValueError(f"n_steps={self.n_steps!r}, assignment={self.assignment!r}; expected 1, 2 or 3, and "
                             "'modal' or 'soft'.")
        if self.correction not in (None, "bch", "ml") or (self.correction and self.n_steps != 3):
            raise ValueError(f"correction={self.correction!r} with n_steps={self.n_steps}; expected None, or with "
                             "n_steps=3 'bch' or 'ml'.")
        if self.ridge < 0 or self.tol < 0 or self.max_iter < 1:
            raise ValueError(f"ridge={self.ridge}, tol={self.tol}, max_iter={self.max_iter}; expected 0 or more, 0 or "
                             "more, and 1 or more.")
        for name in ("measurement", "structural"):
            _check_mixture(name, getattr(self, name))


def _check_mixture(name: str, value: Any) -> None:
    """Refuse what is no mixture that can be given responsibilities."""
    if value is None or (name == "structural" and isinstance(value, str) and value == COVARIATES):
        return
    if not isinstance(value, MixtureEstimator) or not value._averages:
        given = repr(value) if isinstance(value, str) else type(value).__name__
        or_covariates = "" if name == "measurement" else ", or 'covariates'"
        raise ValueError(f"{name} is {given}; expected a mixture of this package fitted by EM from sums, such as "
                         f"CategoricalMixture(){or_covariates}.")


class State(NamedTuple):
    """Where a fit stands."""

    log_weights_K: Array
    measured: Params
    structural: Any  # Params of the outcomes, or coefficients (K, 1 + Q)


def confusion(resp_NK: Array, assigned_NK: Array, weights_N: Array) -> Array:
    """D (K, K): how often a row of class k is assigned to s."""
    weighted_NK = resp_NK * weights_N[:, None]
    joint_KK = weighted_NK.T @ assigned_NK
    return joint_KK / joint_KK.sum(1, keepdims=True)


def modal(resp_NK: Array) -> Array:
    """Rows with a one in the place of the largest responsibility."""
    K = resp_NK.shape[1]
    return np.eye(K)[resp_NK.argmax(1)]


@method(title="Latent class model", year=2004, tags={"estimator", "em", "responsibilities", "sklearn"})
class LatentClassModel(Configured, BaseEstimator, config=Config):
    """Latent classes with covariates or outcomes, by one, two or three steps; options in `Config`."""

    measurement_: MixtureEstimator

    def fit(self, X: Any, y: Any = None, Z: Any = None, sample_weight: Any = None) -> LatentClassModel:
        """Fit to indicators X (N, D), Z (N, Q) covariates or outcomes, rows weighted by `sample_weight`; returns self.

        `y` is ignored. Raises a `ValueError` for options, rows or a Z that are none that can be fitted to.
        """
        config = self._config()
        if (config.structural is None) != (Z is None):
            raise ValueError(f"structural is {config.structural!r} and Z {'is not' if Z is None else 'is'} given; "
                             "expected both, or neither.")
        base = _first_step(config, X, sample_weight)
        self.n_features_in_ = base.n_features_in_
        if hasattr(base, "feature_names_in_"):
            self.feature_names_in_ = base.feature_names_in_
        rows = base._rows(X)
        weights = checked_weights(sample_weight, rows)
        each = torch.ones(rows.n_rows) if weights is None else weights
        weights_N = each.double().cpu().numpy()
        self.log_likelihoods_, self.converged_ = base.lower_bounds_, base.converged_
        with Workers(rows.device) as workers:
            emission = Emission(workers, base._build_family(rows, weights), rows)
            state = _start(base, emission)
            structural = None if Z is None else self._structural(config, workers, Z, weights)
            if structural is not None:
                _check_rows(structural.n_rows, rows.n_rows)
                state = self._relate(config, emission, structural, state, weights_N)
        self._publish(base, emission, structural, state)
        return self

    def _structural(self, config: Config, workers: Workers, Z: Any, weights: Any) -> Outcomes | Covariates:
        """The part of the model that Z belongs to."""
        if config.structural == COVARIATES:
            return Covariates(_design(Z), config.ridge)
        outcomes = clone(config.structural).set_params(n_components=config.n_components)
        outcomes._by_size = False  # classes keep the measurement model's places
        outcomes._validate_params()
        rows, _ = outcomes._read(_columns(Z), None, reset=True)
        outcomes._dtype, outcomes._device = rows.dtype, rows.device
        family = outcomes._build_family(rows, weights)
        self.outcomes_ = outcomes
        return Outcomes(Emission(workers, family, rows))

    def _relate(self, config: Config, emission: Emission, structural: Outcomes | Covariates, state: State,
                weights_N: Array) -> State:
        """The steps after the first."""
        log_emit_NK = emission.log_densities(state.measured)
        resp_NK = softmax(log_emit_NK + state.log_weights_K, axis=1)
        column_N1 = weights_N[:, None]
        if config.n_steps == 3:
            assigned_NK = modal(resp_NK) if config.assignment == "modal" else resp_NK
            self.assignment_ = confusion(resp_NK, assigned_NK, weights_N)
            if config.correction != "ml":
                target_NK = assigned_NK
                if config.correction == "bch":
                    target_NK = assigned_NK @ np.linalg.pinv(self.assignment_)
                found = structural.settle(target_NK * column_N1)
                _refuse_negative(found)
                return state._replace(structural=found)
            log_emit_NK = assigned_NK @ log_positive(self.assignment_).T
        start = state._replace(structural=structural.settle(resp_NK * column_N1))
        held = log_emit_NK if config.n_steps > 1 else None
        climb = _improvement(emission, structural, held, weights_N)
        run = ascend(climb, start, tol=config.tol, max_iter=config.max_iter)
        if not run.converged:
            warnings.warn("the fit did not converge; raise max_iter or tol.", ConvergenceWarning, stacklevel=3)
        self.log_likelihoods_, self.converged_ = run.bounds, run.converged
        return run.state

    def _publish(self, base: MixtureEstimator, emission: Emission, structural: Outcomes | Covariates | None,
                 state: State) -> None:
        """Set the fitted attributes."""
        self.weights_ = np.exp(state.log_weights_K)
        self.measurement_ = base
        _publish_as(base, emission, state.measured, self.weights_)
        if isinstance(structural, Outcomes):
            _publish_as(self.outcomes_, structural.emission, state.structural, self.weights_)
        elif structural is not None:
            coef_KP = state.structural - state.structural[0]
            self.intercept_, self.coef_ = coef_KP[:, 0], coef_KP[:, 1:]

    def _log_joint(self, X: Any, Z: Any) -> Array:
        """Log prior plus log densities (N, K); without Z by the classes' sizes and the indicators alone."""
        check_is_fitted(self)
        log_NK = _emitted(self.measurement_, X)
        log_weights_K = log_positive(self.weights_)
        if Z is None:
            return log_NK + log_weights_K
        if not hasattr(self, "coef_") and not hasattr(self, "outcomes_"):
            raise ValueError("the model was fitted without Z; leave it out.")
        if hasattr(self, "outcomes_"):
            other_NK = _emitted(self.outcomes_, _columns(Z)) + log_weights_K
        else:
            coef_KP = np.column_stack([self.intercept_, self.coef_])
            other_NK = Covariates(_design(Z), 0.0).log_part(coef_KP, log_weights_K)
        _check_rows(len(other_NK), len(log_NK))
        return log_NK + other_NK

    def predict_proba(self, X: Any, Z: Any = None) -> Array:
        """Responsibilities (N, K), without Z by the indicators alone; an error before `fit`."""
        return softmax(self._log_joint(X, Z), axis=1)

    def predict(self, X: Any, Z: Any = None) -> Array:
        """The most probable class of every row (N,); an error before `fit`."""
        return self._log_joint(X, Z).argmax(1)

    def score_samples(self, X: Any, Z: Any = None) -> Array:
        """log p(x, z) of outcomes, log p(x | z) of covariates, or log p(x) without Z (N,); an error before `fit`."""
        return logsumexp(self._log_joint(X, Z), axis=1)

    def score(self, X: Any, y: Any = None, Z: Any = None, sample_weight: Any = None) -> float:
        """Mean of `score_samples`, in nats; an error before `fit`."""
        return float(np.average(self.score_samples(X, Z), weights=sample_weight))

    def bic(self, X: Any, Z: Any = None, sample_weight: Any = None) -> float:
        """Bayesian information criterion, weights counted as frequencies; lower is better. An error before `fit`."""
        log_N = self.score_samples(X, Z)
        given = np.ones(len(log_N)) if sample_weight is None else sample_weight
        weights_N = np.asarray(given)
        price = np.log(weights_N.sum()) * self._n_parameters()
        log_likelihood = weights_N @ log_N
        return float(price - 2 * log_likelihood)

    def _n_parameters(self) -> int:
        own = self.measurement_._n_parameters()
        K = len(self.weights_)
        if hasattr(self, "coef_"):
            return own + (K - 1) * self.coef_.shape[1]
        if hasattr(self, "outcomes_"):
            return own + self.outcomes_._n_parameters() - (K - 1)
        return own

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        base = CategoricalMixture() if self.measurement is None else self.measurement
        tags.input_tags = get_tags(base).input_tags
        return tags


def _first_step(config: Config, X: Any, sample_weight: Any) -> MixtureEstimator:
    """The measurement model, fitted alone."""
    given = CategoricalMixture() if config.measurement is None else config.measurement
    names = ("n_components", "tol", "max_iter", "n_init", "random_state")
    options = {name: getattr(config, name) for name in names}
    base: MixtureEstimator = clone(given).set_params(**options)
    base.fit(X, sample_weight=sample_weight)
    base._by_size = False  # from here on, classes stay where they are
    return base


def _start(base: MixtureEstimator, emission: Emission) -> State:
    """The first step's result."""
    weights_K = as_array(base.weights_).astype(float)
    return State(log_positive(weights_K), base._warm_start(emission.family), None)


def _improvement(emission: Emission, structural: Outcomes | Covariates, held_NK: Array | None,
                 weights_N: Array) -> Callable[[State], tuple[State, float]]:
    """A step of EM that gives a new state and the mean log likelihood before it.

    held_NK: log p(x | k) that stays as it is, as do the classes' sizes; None: the measurement model is fitted, too.
    """
    total = weights_N.sum()

    def improve(state: State) -> tuple[State, float]:
        log_emit_NK = emission.log_densities(state.measured) if held_NK is None else held_NK
        log_joint_NK = log_emit_NK + structural.log_part(state.structural, state.log_weights_K)
        log_N1 = logsumexp(log_joint_NK, axis=1, keepdims=True)
        target_NK = np.exp(log_joint_NK - log_N1) * weights_N[:, None]
        bound = (weights_N @ log_N1[:, 0] - structural.penalty(state.structural)) / total
        found = structural.maximise(state.structural, target_NK)
        if held_NK is not None:
            return state._replace(structural=found), bound
        share_K = target_NK.sum(0) / total
        measured = emission.maximise(state.measured, target_NK)
        return State(log_positive(share_K), measured, found), bound

    return improve


def _publish_as(mixture: MixtureEstimator, emission: Emission, params: Params, weights_K: Array) -> None:
    """Set a mixture's fitted attributes, with these sizes of the components."""
    own = select(params, 0)
    own["weights"] = torch.as_tensor(weights_K)
    mixture._publish(emission.family, own, None)
    mixture.converged_ = True


def _emitted(mixture: MixtureEstimator, X: Any) -> Array:
    """Log densities of rows under a fitted mixture's components (N, K)."""
    rows = mixture._rows(X)
    family, params = mixture._scoring(rows.dtype, rows.device)
    batch = {name: value[None] for name, value in params.items()}
    with Workers(rows.device) as workers:
        return Emission(workers, family, rows).log_densities(batch)


def _design(Z: Any) -> Array:
    """Covariates (N, 1 + Q) with a column of ones; a `ValueError` for what is no number, or missing."""
    z_NQ = check_array(_columns(Z), dtype=np.float64, input_name="Z")
    return np.column_stack([np.ones(len(z_NQ)), z_NQ])


def _columns(Z: Any) -> Any:
    """Z, one column as (N, 1)."""
    if hasattr(Z, "to_frame"):
        return Z.to_frame()
    flat = np.ndim(Z) == 1
    return np.asarray(Z)[:, None] if flat else Z


def _check_rows(given: int, expected: int) -> None:
    if given != expected:
        raise ValueError(f"Z has {given} rows; expected {expected}, as X.")


def _refuse_negative(found: Any) -> None:
    """Refuse shares that a correction made negative."""
    if not isinstance(found, dict):
        return
    for name, value in found.items():
        if name.endswith("probabilities") and bool((value < 0).any()):
            raise ValueError(f"the correction makes a probability {float(value.min()):.3g}: the classes are told apart "
                             "too badly for it; use correction='ml', or fewer steps.")


def example(generator: torch.Generator) -> dict[str, Any]:
    """Four answers of two classes, whose shares depend on a number."""
    z_N = torch.randn(200, generator=generator, dtype=torch.float64)
    first_N = torch.rand(200, generator=generator) < torch.sigmoid(z_N)
    right_N4 = torch.rand(200, 4, generator=generator) < 0.8
    x_N4 = right_N4 == first_N[:, None]
    estimator = LatentClassModel(2, structural=COVARIATES, tol=1e-4, n_init=1, random_state=0)
    return {"estimator": estimator, "X": x_N4.double().numpy(), "Z": z_N.numpy()}
