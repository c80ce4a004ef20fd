"""Sparse factors of counts: few features a row, by a law of one's own, and few columns a feature; by Gibbs sampling.

**Equation:** x_nd ~ Poisson(b_0d + sum_k z_nk b_kd), b_kd ~ Gamma(shape, rate) sparse for shapes below 1, b_0 a faint
background. Feature weights pi_k follow the three-parameter Indian buffet's measure, a Levy intensity alpha Gamma(1 + c)
/ (Gamma(1 - s) Gamma(c + s)) pi^(-s - 1) (1 - pi)^(c + s - 1): mass alpha, concentration c, stability s (use falls off
as a power where s > 0). It is cut by the factor 1 - (1 - pi)^R (what R rows would see) with R such that K features are
expected. Restricted: P(z_n) = f(J_n) / PB(J_n | pi) prod_k pi_k^z (1 - pi_k)^(1 - z), J_n = sum_k z_nk, f any law, PB
the Poisson-binomial. A sweep: flips of z by their odds times f(J + 1) PB(J) / f(J) PB(J + 1), swaps within rows,
Metropolis steps in logit pi with PB in them, counts split among features, gamma draws of b.

**Shapes:** X (N, D) counts, NaN where unseen; `codes_` (N, K), `loadings_` (K, D), `background_` (D,), `weights_` (K,).

**Reference:** Pradier, Stojkoski, Utkovski, Kocarev, Perez-Cruz (2018), Sparse Three-parameter Restricted Indian Buffet
Process for Understanding International Trade, arXiv:1806.11518; Doshi-Velez, Williamson (2015), Restricted Indian
buffet processes; Teh, Gorur (2009), Indian buffet processes with power-law behavior.

**Differs:** written from the abstract and those two. K features at most, weights independent of each other; mass,
concentration, stability, shape are given, not sampled. The background keeps rows without features possible.

**Fails when:** f is the law that rows would have anyway (nothing is gained); chains are short: features split or stay
merged. Feature weights are not identified beyond their order where f fixes J.

**Cost:** O(N K D + K^2 J) a sweep for J active features at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import betaln, digamma, expit, gammaln, logsumexp
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted

from mixwell.core.method import method
from mixwell.density._gaussian import Array, log_positive, outer
from mixwell.density._options import Configured

STEP = 0.5  # standard deviation of steps in logit weights


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the factors; `ValueError` for one out of range."""

    n_features: int = 10  # K, at most
    row_law: Sequence[float] | None = None  # f: chances of 0, 1, 2, ... active features; None: what the weights give
    mass: float = 2.0  # alpha: expected features of a row without restriction
    concentration: float = 1.0  # c
    stability: float = 0.3  # s
    shape: float = 0.3  # of loadings
    background: float = 0.05  # prior mean of the background, as a share of the column's mean
    sweeps: int = 400
    kept: int = 50  # of the last half, evenly spaced
    random_state: Any = None

    def __post_init__(self) -> None:
        for name in ("n_features", "mass", "shape", "background", "sweeps", "kept"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} is {value}; expected above 0")
        if not 0 <= self.stability < 1:
            raise ValueError(f"stability is {self.stability}; expected 0 to below 1")
        if self.concentration <= -self.stability:
            raise ValueError(f"concentration is {self.concentration}; expected above minus the stability, "
                             f"{-self.stability}")
        if self.row_law is not None:
            _check_law(np.asarray(self.row_law, dtype=np.float64), self.n_features)


def _check_law(law_J: Array, features: int) -> None:
    fits = law_J.ndim == 1 and len(law_J) <= features + 1
    chances = (law_J >= 0).all()
    some = law_J[1:].sum() > 0
    if not (fits and chances and some):
        raise ValueError(f"row_law is {law_J.tolist()}; expected chances of 0, 1, ... up to {features} active "
                         "features, some above 0 of one or more")


class State(NamedTuple):
    """One draw."""

    z_NK: Array  # bool
    b_KD: Array  # the background's row first: (1 + K, D)
    logit_K: Array  # of feature weights


class Prior(NamedTuple):
    """What all draws share."""

    log_law_J: Array | None  # of 0..K active features
    power: float  # s
    tail: float  # c + s
    rounds: float  # R
    shape: float  # of loadings
    rate_FD: Array  # (1 + K, D), the background's first


def expected_features(mass: float, concentration: float, stability: float, rounds: float) -> float:
    """How many features R rows of a three-parameter buffet take."""
    c, s = concentration, stability
    end = c + rounds
    if s == 0:
        sums = digamma(end) - digamma(c)
        return float(mass * c * sums)
    log_last = gammaln(s) - betaln(end, s)  # of Gamma(end + s) / Gamma(end): their own lack digits where end is large
    log_first = gammaln(1 + c) - gammaln(c + s)
    ratio = np.exp(log_first + log_last)
    each = mass / s
    return float(each * (ratio - c))


def rounds_for(mass: float, concentration: float, stability: float, features: int) -> float:
    """R such that as many features are expected; `ValueError` where no R gets that far."""
    def excess(log_rounds: float) -> float:
        rounds = np.exp(log_rounds)
        return expected_features(mass, concentration, stability, rounds) - features

    low, high = -20.0, 1.0
    while excess(high) < 0 and high < 300:
        high += 2
    if excess(high) < 0:
        raise ValueError(f"n_features is {features}, more than any rows take; expected fewer, or a mass above {mass}")
    return float(np.exp(brentq(excess, low, high)))


def log_weight_prior(logit: Array, prior: Prior) -> Array:
    """Log density of logit pi, up to a constant."""
    log_pi = -np.logaddexp(0, -logit)
    log_rest = -np.logaddexp(0, logit)
    log_unseen = prior.rounds * log_rest
    seen = -np.expm1(log_unseen)
    log_seen = log_positive(seen)
    falling = prior.power * log_pi
    return log_seen - falling + prior.tail * log_rest


def log_counts_law(logit_K: Array) -> Array:
    """log PB (K + 1,): chances of 0..K successes of independent trials."""
    log_J = np.full(len(logit_K) + 1, -np.inf)
    log_J[0] = 0.0
    log_rest_K = -np.logaddexp(0, logit_K)
    for logit, log_rest in zip(logit_K, log_rest_K):
        one_more_J = np.roll(log_J, 1)
        one_more_J[0] = -np.inf
        either_J = np.logaddexp(log_J, one_more_J + logit)
        log_J = either_J + log_rest
    return log_J


def log_restriction(logit_K: Array, prior: Prior) -> Array:
    """log f(J) - log PB(J) (K + 1,), zero without a law."""
    if prior.log_law_J is None:
        return np.zeros(len(logit_K) + 1)
    return prior.log_law_J - log_counts_law(logit_K)


def gain_of(x_ND: Array, rate_ND: Array, added_ND: Array) -> Array:
    """Log likelihood (N,) of counts that rates plus `added` gain over the rates; NaN counts nothing."""
    each_ND = x_ND * np.log1p(added_ND / rate_ND) - added_ND
    return np.nansum(each_ND, 1)


def flip(x_ND: Array, state: State, prior: Prior, rng: np.random.RandomState) -> State:
    """Gibbs steps of every row's features in turn."""
    z_NK = state.z_NK.copy()
    background_D, features_KD = state.b_KD[0], state.b_KD[1:]
    restriction_J = log_restriction(state.logit_K, prior)
    pairs = zip(features_KD, state.logit_K)
    for k, (b_D, logit) in enumerate(pairs):
        on_N = z_NK[:, k].copy()
        z_NK[:, k] = False
        others_N = z_NK.sum(1)
        without_ND = background_D + z_NK @ features_KD
        gain_N = gain_of(x_ND, without_ND, b_D)
        with np.errstate(invalid="ignore"):  # the law forbids both
            prior_N = restriction_J[others_N + 1] - restriction_J[others_N]
        odds_N = gain_N + logit + prior_N
        chance_N = rng.uniform(size=len(on_N))
        new_N = chance_N < expit(odds_N)
        undecided_N = np.isnan(odds_N)
        z_NK[:, k] = np.where(undecided_N, on_N, new_N)
    return state._replace(z_NK=z_NK)


def swap(x_ND: Array, state: State, rng: np.random.RandomState) -> State:
    """Metropolis steps that exchange an active feature of every row for one that is not; J stays."""
    z_NK = state.z_NK.copy()
    noise_NK = rng.uniform(size=z_NK.shape)
    out_N = np.where(z_NK, noise_NK, -1).argmax(1)
    in_N = np.where(z_NK, -1, noise_NK).argmax(1)
    rows = np.arange(len(z_NK))
    able_N = z_NK[rows, out_N] > z_NK[rows, in_N]
    z_NK[rows, out_N] = False
    features_KD = state.b_KD[1:]
    base_ND = state.b_KD[0] + z_NK @ features_KD
    with_in_N = gain_of(x_ND, base_ND, features_KD[in_N])
    with_out_N = gain_of(x_ND, base_ND, features_KD[out_N])
    weighed_N = state.logit_K[in_N] - state.logit_K[out_N]
    odds_N = with_in_N - with_out_N + weighed_N
    chance_N = rng.uniform(size=len(odds_N))
    taken_N = able_N & (np.log(chance_N) < odds_N)
    z_NK[rows, out_N] = state.z_NK[rows, out_N] & ~taken_N
    z_NK[rows, in_N] |= taken_N
    return state._replace(z_NK=z_NK)


def move_weights(state: State, prior: Prior, rng: np.random.RandomState) -> State:
    """Metropolis steps of every feature's weight, the rows' normalisers among what is weighed."""
    logit_K = state.logit_K
    now = _log_weights(logit_K, state.z_NK, prior)
    for k in range(len(logit_K)):
        trial_K = logit_K.copy()
        trial_K[k] += STEP * rng.normal()
        then = _log_weights(trial_K, state.z_NK, prior)
        chance = rng.uniform()
        if np.log(chance) < then - now:
            logit_K, now = trial_K, then
    return state._replace(logit_K=logit_K)


def _log_weights(logit_K: Array, z_NK: Array, prior: Prior) -> float:
    """Log density of logit pi given all codes, up to a constant."""
    active_N = z_NK.sum(1)
    own = z_NK.sum(0) @ logit_K
    log_rest_K = -np.logaddexp(0, logit_K)
    codes = own + len(z_NK) * log_rest_K.sum()
    restriction_J = log_restriction(logit_K, prior)
    weights_K = log_weight_prior(logit_K, prior)
    restricted_N = restriction_J[active_N]
    return float(codes + restricted_N.sum() + weights_K.sum())


def split_counts(x_ND: Array, state: State, rng: np.random.RandomState) -> Array:
    """Counts (1 + K, D) that fall to the background and the features, summed over rows."""
    ones_N = np.ones(len(x_ND))
    on_NF = np.column_stack([ones_N, state.z_NK])
    rate_ND = on_NF @ state.b_KD
    filled_ND = np.nan_to_num(x_ND)
    left_ND = filled_ND.astype(int)
    totals = []
    for on_N, b_D in zip(on_NF.T, state.b_KD):
        own_ND = outer(on_N, b_D)
        share_ND = own_ND / np.maximum(rate_ND, 1e-300)
        drawn_ND = rng.binomial(left_ND, share_ND.clip(0, 1))
        totals.append(drawn_ND.sum(0))
        left_ND = left_ND - drawn_ND
        rate_ND = rate_ND - own_ND
    totals[0] = totals[0] + left_ND.sum(0)  # what rounding of rates left over
    return np.stack(totals)


def draw_loadings(x_ND: Array, state: State, prior: Prior, rng: np.random.RandomState) -> State:
    """Conjugate gamma draws of background and features."""
    counts_FD = split_counts(x_ND, state, rng)
    seen_ND = 1.0 - np.isnan(x_ND)
    ones_N = np.ones(len(x_ND))
    on_NF = np.column_stack([ones_N, state.z_NK])
    exposed_FD = on_NF.T @ seen_ND
    drawn_FD = rng.standard_gamma(counts_FD + prior.shape)
    rate_FD = exposed_FD + prior.rate_FD
    b_FD = drawn_FD / rate_FD
    least_FD = np.maximum(b_FD, 1e-100)
    return state._replace(b_KD=least_FD)


def sweep(x_ND: Array, state: State, prior: Prior, rng: np.random.RandomState) -> State:
    """One draw after another."""
    state = flip(x_ND, state, prior, rng)
    state = swap(x_ND, state, rng)
    state = move_weights(state, prior, rng)
    return draw_loadings(x_ND, state, prior, rng)


def log_poisson(x_ND: Array, state: State) -> Array:
    """Log probabilities (N, D) of counts."""
    rate_ND = rates(state)
    factorial_ND = gammaln(x_ND + 1)
    return x_ND * np.log(rate_ND) - rate_ND - factorial_ND


def rates(state: State) -> Array:
    """Expected counts (N, D)."""
    features_ND = state.z_NK @ state.b_KD[1:]
    return state.b_KD[0] + features_ND


def prior_of(x_ND: Array, config: Config) -> Prior:
    """Scales from the data, the weights' cut from the options."""
    K = config.n_features
    log_law_J = None
    if config.row_law is not None:
        law_J = np.zeros(K + 1)
        law_J[: len(config.row_law)] = config.row_law
        with np.errstate(divide="ignore"):
            log_law_J = np.log(law_J / law_J.sum())
    seen_ND = ~np.isnan(x_ND)
    count_D = seen_ND.sum(0)
    mean_D = np.nansum(x_ND, 0) / np.maximum(count_D, 1)
    rate_D = config.shape / (mean_D + 1e-2)
    rate_FD = np.tile(rate_D, (1 + K, 1))
    rate_FD[0] /= config.background
    rounds = rounds_for(config.mass, config.concentration, config.stability, K)
    tail = config.concentration + config.stability
    return Prior(log_law_J, config.stability, tail, rounds, config.shape, rate_FD)


def start(x_ND: Array, prior: Prior, rng: np.random.RandomState, features: int) -> State:
    """As many active features in each row as the law likes best (two without one), at random; loadings of the prior."""
    active = min(2, features)
    if prior.log_law_J is not None:
        active = int(prior.log_law_J.argmax())
    size = (len(x_ND), features)
    noise_NK = rng.uniform(size=size)
    z_NK = noise_NK.argsort(1) < active
    mean_FD = prior.shape / prior.rate_FD
    b_FD = rng.standard_gamma(1.0, size=mean_FD.shape)
    logit_K = np.zeros(features)
    first_FD = b_FD * mean_FD
    return State(z_NK, first_FD, logit_K)


@method(
    title="Sparse factors of counts under a restricted buffet",
    paper="Sparse Three-parameter Restricted Indian Buffet Process for Understanding International Trade",
    year=2018,
    tags={"estimator"},
)
class RestrictedBuffet(Configured, config=Config):
    """Sparse features of counts; see the module's card.

    After `fit`: `codes_`, `loadings_`, `background_`, `weights_` of the kept draw that is likeliest for the counts;
    `rates_` (N, D) averaged over the kept draws, `log_likelihoods_` (nats, one a sweep).
    """

    def fit(self, X: Any, y: Any = None) -> RestrictedBuffet:
        """Fit to counts X (N, D), NaN where unseen; `ValueError` for options out of range or what is no count."""
        config = self._config()
        x_ND = _counts(X)
        rng = check_random_state(config.random_state)
        prior = prior_of(x_ND, config)
        state = start(x_ND, prior, rng, config.n_features)
        half = config.sweeps // 2
        spaced = np.linspace(half, config.sweeps - 1, config.kept)
        wanted = spaced.astype(int)
        self.log_likelihoods_, self._kept = [], []
        for turn in range(config.sweeps):
            state = sweep(x_ND, state, prior, rng)
            log_ND = log_poisson(x_ND, state)
            likelihood = float(np.nansum(log_ND))
            self.log_likelihoods_.append(likelihood)
            if turn in wanted:
                self._kept.append((likelihood, state))
        _, best = max(self._kept, key=lambda pair: pair[0])
        self.codes_ = best.z_NK.astype(int)
        self.background_, self.loadings_ = best.b_KD[0], best.b_KD[1:]
        self.weights_ = expit(best.logit_K)
        each = [rates(state) for _, state in self._kept]
        self.rates_ = np.mean(each, axis=0)
        return self

    def log_predictive(self, X: Any) -> Array:
        """Log probabilities (N, D) of counts for the rows of the fit, averaged over kept draws; NaN stays.

        For cells that the fit did not see; `ValueError` for another shape, or what is no count.
        """
        check_is_fitted(self)
        x_ND = _counts(X)
        if x_ND.shape != self.rates_.shape:
            raise ValueError(f"X has shape {x_ND.shape}; expected {self.rates_.shape}, the rows of the fit")
        each = [log_poisson(x_ND, state) for _, state in self._kept]
        total_ND = logsumexp(each, axis=0)
        count = len(each)
        return total_ND - np.log(count)


def _counts(X: Any) -> Array:
    x_ND = check_array(X, dtype=np.float64, ensure_all_finite="allow-nan")
    unseen_ND = np.isnan(x_ND)
    whole_ND = x_ND == np.floor(x_ND)
    counts_ND = whole_ND & (x_ND >= 0)
    allowed_ND = counts_ND | unseen_ND
    if not allowed_ND.all():
        raise ValueError("X holds numbers that are no counts; expected whole numbers of 0 or more, NaN where unseen")
    return x_ND


def example(generator: torch.Generator) -> dict[str, Any]:
    """Thirty rows that have one of two features each."""
    first_N1 = torch.rand(30, 1, generator=generator) < 0.5
    rates_D = torch.tensor([6.0, 6.0, 0.1, 0.1])
    rates_ND = torch.where(first_N1, rates_D, rates_D.flip(0))
    return {
        "estimator": RestrictedBuffet(n_features=3, row_law=[0, 1], sweeps=20, kept=5, random_state=0),
        "X": torch.poisson(rates_ND, generator=generator).double().numpy(),
    }
