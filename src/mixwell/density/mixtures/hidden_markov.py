"""Hidden Markov model: rows in sequence, emitted by the components of any mixture, whose turn a Markov chain decides.

**Equation:** p(x, z) = pi(z_1) prod_t A(z_(t-1), z_t) prod_t p(x_t; theta_(z_t)). E step: forward and backward sums in
log space give gamma_tk = p(z_t = k | x) and xi_tjk = p(z_t = j, z_(t+1) = k | x). M step: pi is gamma of the first
rows, A the shares of xi over rows, theta the mixture's own M step with gamma for responsibilities. Viterbi: the path of
the highest p(x, z).

**Shapes:** X (N, D), sequences one after another, `lengths` (Q,) that sum to N; `startprob_` (K,), `transmat_` (K, K),
`components_` the fitted mixture; by hmmlearn's names `means_` (K, D), `covars_` (K, D, D), `lambdas_` (K, D),
`emissionprob_` (K, C).

**Reference:** Rabiner (1989), A Tutorial on Hidden Markov Models and Selected Applications in Speech Recognition.

**Differs:** no priors on chain or components but those of the mixture (`reg_covar`, `alpha`); hmmlearn's default is a
weak prior on variances. The start is a mixture fitted to the rows without their order.

**Fails when:** a state is too short-lived to be told apart by rows: its start, from the rows alone, then misleads.

**Cost:** O(N K^2) a step for the chain, in a loop over rows, beside two E steps and an M step of the mixture.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from mixwell.core.method import method
from mixwell.density._ascent import ascend
from mixwell.density._covariances import as_full
from mixwell.density._gaussian import Array
from mixwell.density._options import Configured
from mixwell.density.chains import likeliest_path
from mixwell.density.mixtures._parts import MixtureEstimator
from mixwell.density.mixtures._scores import as_array
from mixwell.density.mixtures.em.assigned import Emission
from mixwell.density.mixtures.em.loop import Params, select
from mixwell.density.mixtures.em.workers import Workers
from mixwell.density.mixtures.gaussian import GaussianMixture


@dataclass(frozen=True)
class Config:
    """Options of a hidden Markov model; `ValueError` for one out of range."""

    components: Any = None  # a mixture, whose n_components is the number of states K; None: GaussianMixture(2)
    max_iter: int = 100
    tol: float = 1e-2  # stop when a step gains less, in nats of all rows together
    init: Literal["fit", "given"] = "fit"  # "given": `components` is fitted, and its parameters are the start
    startprob_init: Any = None  # (K,); None: equal
    transmat_init: Any = None  # (K, K); None: equal
    random_state: Any = None  # of `sample`

    def __post_init__(self) -> None:
        if self.max_iter < 1 or self.tol < 0:
            raise ValueError(f"max_iter={self.max_iter}, tol={self.tol}; expected 1 or more, and 0 or more")
        if self.init not in ("fit", "given"):
            raise ValueError(f"init is {self.init!r}; expected 'fit' or 'given'")


class State(NamedTuple):
    """Where a fit stands."""

    log_start_K: Array
    log_step_KK: Array
    params: Params


class Smoothed(NamedTuple):
    """What one sequence says of its states."""

    log_likelihood: float
    log_gamma_TK: Array
    moves_KK: Array  # expected numbers of transitions


def forward(log_start_K: Array, log_step_KK: Array, log_emit_TK: Array) -> Array:
    """log p(x_1, ..., x_t, z_t) (T, K)."""
    log_alpha_TK = np.empty_like(log_emit_TK)
    log_alpha_TK[0] = log_start_K + log_emit_TK[0]
    for t in range(1, len(log_emit_TK)):
        reached_KK = log_alpha_TK[t - 1][:, None] + log_step_KK
        log_alpha_TK[t] = np.logaddexp.reduce(reached_KK, 0) + log_emit_TK[t]
    return log_alpha_TK


def backward(log_step_KK: Array, log_emit_TK: Array) -> Array:
    """log p(x_(t+1), ..., x_T | z_t) (T, K)."""
    log_beta_TK = np.zeros_like(log_emit_TK)
    for t in range(len(log_emit_TK) - 2, -1, -1):
        ahead_K = log_emit_TK[t + 1] + log_beta_TK[t + 1]
        log_beta_TK[t] = np.logaddexp.reduce(log_step_KK + ahead_K, 1)
    return log_beta_TK


def smooth(log_start_K: Array, log_step_KK: Array, log_emit_TK: Array) -> Smoothed:
    """Posterior of the states of one sequence."""
    log_alpha_TK = forward(log_start_K, log_step_KK, log_emit_TK)
    log_beta_TK = backward(log_step_KK, log_emit_TK)
    total = np.logaddexp.reduce(log_alpha_TK[-1])
    log_ahead_TK = log_emit_TK[1:] + log_beta_TK[1:] - total
    log_pairs_TKK = log_alpha_TK[:-1, :, None] + log_ahead_TK[:, None]
    moves_KK = np.exp(log_pairs_TKK + log_step_KK).sum(0)
    return Smoothed(float(total), log_alpha_TK + log_beta_TK - total, moves_KK)


@method(title="Hidden Markov model", year=1989, tags={"estimator", "em"})
class HiddenMarkovModel(Configured, BaseEstimator, config=Config):
    """Hidden Markov model over the components of a mixture, with hmmlearn's names; options in `Config`."""

    components_: MixtureEstimator

    def fit(self, X: Any, y: Any = None, lengths: Any = None) -> HiddenMarkovModel:
        """Fit to sequences X (N, D) of `lengths` (None: one sequence); returns self.

        Raises a `ValueError` for lengths, options or rows that are none that can be fitted to.
        """
        config = self._config()
        base = self._base(config, X)
        rows = base._rows(X)
        bounds = _bounds(lengths, rows.n_rows)
        family = base._build_family(rows, None)
        K = base.n_components
        log_start_K = _log_shares("startprob_init", config.startprob_init, (K,))
        log_step_KK = _log_shares("transmat_init", config.transmat_init, (K, K))
        start = State(log_start_K, log_step_KK, base._warm_start(family))
        with Workers(rows.device) as workers:
            emission = Emission(workers, family, rows)
            run = ascend(lambda state: _improve(emission, bounds, state), start, tol=config.tol,
                         max_iter=config.max_iter)
        if not run.converged:
            warnings.warn("the fit did not converge; raise max_iter or tol.", ConvergenceWarning, stacklevel=2)
        log_start_K, log_step_KK, params = run.state
        own = select(params, 0)
        base._publish(family, own, X)
        self.components_ = base
        order = base._order(own["weights"]).cpu().numpy()
        step_KK = np.exp(log_step_KK)
        self.startprob_, self.transmat_ = np.exp(log_start_K)[order], step_KK[np.ix_(order, order)]
        self.log_likelihoods_ = run.bounds
        self.converged_ = run.converged
        return self

    def _base(self, config: Config, X: Any) -> MixtureEstimator:
        """The mixture that the fit starts from, fitted."""
        base = GaussianMixture(2, random_state=0) if config.components is None else config.components
        if not isinstance(base, MixtureEstimator) or not base._averages:
            raise ValueError(f"components is {type(base).__name__}; expected a mixture of this package fitted by EM "
                             "from sums, such as GaussianMixture(3)")
        if config.init == "given":
            check_is_fitted(base)
            return deepcopy(base)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted: MixtureEstimator = clone(base).fit(X)
        return fitted

    def _emissions(self, X: Any, lengths: Any) -> tuple[Array, list[slice]]:
        """Log densities of all rows under all states (N, K), and where the sequences lie."""
        check_is_fitted(self)
        rows = self.components_._rows(X)
        family, params = self.components_._scoring(rows.dtype, rows.device)
        batch = {name: value[None] for name, value in params.items()}
        with Workers(rows.device) as workers:
            log_emit_NK = Emission(workers, family, rows).log_densities(batch)
        return log_emit_NK, _bounds(lengths, rows.n_rows)

    def _chain(self) -> tuple[Array, Array]:
        with np.errstate(divide="ignore"):
            return np.log(self.startprob_), np.log(self.transmat_)

    def score(self, X: Any, y: Any = None, lengths: Any = None) -> float:
        """Log likelihood of all sequences together, in nats; an error before `fit`."""
        return self.score_samples(X, lengths)[0]

    def score_samples(self, X: Any, lengths: Any = None) -> tuple[float, Array]:
        """Log likelihood, and the probabilities of the states at every row (N, K); an error before `fit`."""
        log_emit_NK, bounds = self._emissions(X, lengths)
        chain = self._chain()
        found = [smooth(*chain, log_emit_NK[own]) for own in bounds]
        total = sum(one.log_likelihood for one in found)
        log_gamma_NK = np.concatenate([one.log_gamma_TK for one in found])
        return total, np.exp(log_gamma_NK)

    def predict_proba(self, X: Any, lengths: Any = None) -> Array:
        """Probabilities of the states at every row (N, K), all rows of its sequence known; an error before `fit`."""
        return self.score_samples(X, lengths)[1]

    def decode(self, X: Any, lengths: Any = None) -> tuple[float, Array]:
        """log p(x, z) of the most probable paths together, and their states (N,); an error before `fit`."""
        log_emit_NK, bounds = self._emissions(X, lengths)
        chain = self._chain()
        found = [likeliest_path(*chain, log_emit_NK[own]) for own in bounds]
        total = sum(value for value, _ in found)
        return total, np.concatenate([path_T for _, path_T in found])

    def predict(self, X: Any, lengths: Any = None) -> Array:
        """States of the most probable paths (N,); an error before `fit`."""
        return self.decode(X, lengths)[1]

    def sample(self, n_samples: int = 1) -> tuple[Array, Array]:
        """One sequence (n_samples, D) and its states (n_samples,); an error before `fit`."""
        check_is_fitted(self)
        rng = check_random_state(self.random_state)
        K = len(self.startprob_)
        states_N = np.empty(n_samples, dtype=int)
        share_K = self.startprob_
        for n in range(n_samples):
            states_N[n] = rng.choice(K, p=share_K)
            share_K = self.transmat_[states_N[n]]
        drawn_ND = self.components_._draw(rng, np.bincount(states_N, minlength=K))
        x_ND = np.empty_like(drawn_ND)
        order_N = states_N.argsort(kind="stable")
        x_ND[order_N] = drawn_ND
        return x_ND, states_N

    @property
    def means_(self) -> Array:
        """Means of Gaussian states (K, D)."""
        return as_array(self.components_.means_)

    @property
    def covars_(self) -> Array:
        """Covariances of Gaussian states as matrices (K, D, D)."""
        model: Any = self.components_
        means_1KD, covariances = (torch.as_tensor(value)[None] for value in (model.means_, model.covariances_))
        return as_full(model.covariance_type, covariances, means_1KD)[0].numpy()

    @property
    def lambdas_(self) -> Array:
        """Rates of Poisson states (K, D)."""
        return as_array(self.components_.rates_)

    @property
    def emissionprob_(self) -> Array:
        """Probabilities of the categories of the first column (K, C)."""
        return as_array(self.components_.probabilities_[0])


def _improve(emission: Emission, bounds: list[slice], state: State) -> tuple[State, float]:
    """One step of EM, and the log likelihood before it."""
    log_start_K, log_step_KK, params = state
    log_emit_NK = emission.log_densities(params)
    found = [smooth(log_start_K, log_step_KK, log_emit_NK[own]) for own in bounds]
    log_gamma_NK = np.concatenate([one.log_gamma_TK for one in found])
    new = emission.maximise(params, np.exp(log_gamma_NK))
    first_QK = np.array([one.log_gamma_TK[0] for one in found])
    moves_KK = np.sum([one.moves_KK for one in found], 0)
    left_K1 = moves_KK.sum(1, keepdims=True)
    share_KK = np.where(left_K1 > 0, moves_KK, np.exp(log_step_KK))  # states that are never left stay as they were
    share_KK = share_KK / share_KK.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        log_share_KK = np.log(share_KK)
    log_first_K = np.logaddexp.reduce(first_QK, 0) - np.log(len(found))
    return State(log_first_K, log_share_KK, new), sum(one.log_likelihood for one in found)


def _bounds(lengths: Any, rows: int) -> list[slice]:
    """Where sequences begin and end, from their lengths."""
    if lengths is None:
        return [slice(0, rows)]
    ends = np.cumsum(np.asarray(lengths))
    if len(ends) == 0 or np.min(lengths) < 1 or ends[-1] != rows:
        raise ValueError(f"lengths sum to {np.sum(lengths)} for {rows} rows; expected numbers above 0 with this sum")
    starts = [0, *ends[:-1]]
    return [slice(int(start), int(end)) for start, end in zip(starts, ends)]


def _log_shares(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """Logarithms of probabilities that are given, or of equal ones."""
    K = shape[0]
    share = np.full(shape, 1 / K) if value is None else np.asarray(value, dtype=np.float64)
    if share.shape != shape or share.min() < 0 or not np.allclose(share.sum(-1), 1):
        raise ValueError(f"{name} should be probabilities {shape} that sum to one, but got {value!r}")
    with np.errstate(divide="ignore"):
        return np.log(share)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Runs of ten rows about one place and another."""
    state_N = torch.arange(120) // 10 % 2
    noise_N2 = torch.randn(120, 2, generator=generator, dtype=torch.float64)
    x_N2 = noise_N2 + 2 * state_N[:, None]
    return {"estimator": HiddenMarkovModel(GaussianMixture(2, reg_covar=0.0, random_state=0)), "X": x_N2.numpy()}
