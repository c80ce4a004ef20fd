"""Functional Tucker decomposition: a tensor whose modes have continuous indexes, as a core of Gaussian processes.

**Equation:** y_n = sum_r1..rK W_r1..rK u^1_r1(i_n1) .. u^K_rK(i_nK) + noise of precision tau, the u^k_r Matern
processes, written as linear stochastic differential equations, W ~ N(0, core_variance), tau ~ Gamma(shape, rate). With
a_n = E-core contracted with the other modes' functions, entry n tells mode k at i_nk a precision E[tau] E[a a'] and a
pull E[tau] y E[a]; what entries of one index tell is summed and a Kalman filter and smoother give the mode's posterior.
The core is normal, of precision I / core_variance + E[tau] sum_n E[z z'] with z the product of the functions, and
tau ~ Gamma(shape + N / 2, rate + sum_n E[(y - W . z)^2] / 2).

**Shapes:** X (N, K) indexes, y (N,); `core_` (R, .., R); of every mode places (U,) and functions (U, R).

**Reference:** Fang, Yu, Wang, Li, Kirby, Zhe (2024), Functional Bayesian Tucker Decomposition for Continuous-indexed
Tensor Data, ICLR, arXiv:2311.04829.

**Differs:** modes, core and noise are updated in turn, whole and undamped. That is coordinate ascent on a mean-field
bound, whose fixed points are those of the paper's damped messages. New indexes join the chain as places where nothing
is known, before, between or after the others; the authors' code interpolates between two smoothed neighbours, leaves
the core's covariance out of E[a a'] and adds a second prior. y is standardised, the noise's prior is vague, functions
start as random cosines of the kernel's spectrum, and the noise is held at a hundredth of y's variance for `held_steps`.

**Fails when:** K or R is large (R^2K numbers an entry); few entries share or neighbour an index; the bound has many
optima (raise `n_init`).

**Cost:** O(N R^2K + K U (R S)^3) a step, linear in the indexes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import gammaln
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from mixwell.core.method import method
from mixwell.density._ascent import Run, ascend, highest
from mixwell.density._gaussian import LOG_2PI, Array, divergence, outer, symmetric
from mixwell.density._options import Configured
from mixwell.density.processes._matern import KERNELS, Smoothed, second, smooth, steps

HELD = 0.01  # variance of the noise at first, as a share of the values'


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the decomposition; `ValueError` for one out of range."""

    rank: int = 2  # R, functions of every mode
    kernel: Literal["matern12", "matern32"] = "matern32"  # of the functions; the first is rough
    length: float | Sequence[float] = 0.2  # the kernel's scale, in units of the indexes; one, or one a mode
    variance: float = 1.0  # of every function
    core_variance: float = 1.0
    noise_shape: float = 1e-3  # of the noise's precision, y in standard deviations
    noise_rate: float = 1e-3
    held_steps: int = 10  # steps before the noise is fitted, which keep a start from calling everything noise
    n_init: int = 3  # starts; the one with the highest bound is kept
    max_iter: int = 100
    tol: float = 1e-5  # stop when a step gains less, in nats an entry
    random_state: Any = None  # of the starts

    def __post_init__(self) -> None:
        for name in ("rank", "n_init", "max_iter"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        for name in ("length", "variance", "core_variance", "noise_shape", "noise_rate"):
            value = getattr(self, name)
            if np.min(value) <= 0:
                raise ValueError(f"{name} is {value}; expected above 0")
        if self.held_steps < 0:
            raise ValueError(f"held_steps is {self.held_steps}; expected 0 or more")
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel is {self.kernel!r}; expected 'matern12' or 'matern32'")
        if self.tol < 0:
            raise ValueError(f"tol is {self.tol}; expected 0 or more")


@dataclass(frozen=True)
class Mode:
    """The functions of one mode, and what the entries say of them."""

    place_U: Array
    length: float
    precision_URR: Array
    pull_UR: Array
    mean_UR: Array
    second_URR: Array
    divergence: float = 0.0  # of the posterior from the prior, in nats


@dataclass(frozen=True)
class Core:
    """The core's normal, flattened, with the number of nats that it stands from its prior."""

    mean_P: Array
    second_PP: Array
    divergence: float = 0.0


@dataclass(frozen=True)
class State:
    """All that is believed: modes, core, and the noise's precision by shape and rate."""

    modes: tuple[Mode, ...]
    core: Core
    shape: float
    rate: float


def product(parts: Sequence[Array], N: int, dims: int) -> Array:
    """Kronecker products, entry by entry, of vectors (N, R) or of matrices (N, R, R); ones where there are none."""
    found = np.ones((N,) + (1,) * dims)
    rule = "np,nr->npr" if dims == 1 else "npq,nrs->nprqs"
    for part in parts:
        joined = np.einsum(rule, found, part)
        side = found.shape[1] * part.shape[1]
        found = joined.reshape((N,) + (side,) * dims)
    return found


def contracted(core: Core, shape: tuple[int, ...], mode: int, z_NP: Array, z_NPP: Array) -> tuple[Array, Array]:
    """E[a] (N, R) and E[a a'] (N, R, R) of a mode, from first and second moments of the other modes' product."""
    K, R = len(shape), shape[mode]
    mean_RP = np.moveaxis(core.mean_P.reshape(shape), mode, 0).reshape(R, -1)
    square = core.second_PP.reshape(shape + shape)
    turned = np.moveaxis(square, (mode, K + mode), (0, 1))
    square_RRPP = turned.reshape(R, R, mean_RP.shape[1], mean_RP.shape[1])
    first_NR = z_NP @ mean_RP.T
    second_NRR = np.tensordot(z_NPP, square_RRPP, axes=([1, 2], [2, 3]))
    return first_NR, second_NRR


class Entries:
    """Standardised values, and the places of their indexes in every mode."""

    def __init__(self, X: Array, y_N: Array) -> None:
        self.y_N = y_N
        self.places = []
        self.at = []
        for column_N in X.T:
            place_U, at_N = np.unique(column_N, return_inverse=True)
            self.places.append(place_U)
            self.at.append(at_N)

    def moments(self, modes: Sequence[Mode], without: int | None = None) -> tuple[Array, Array]:
        """E[z] (N, P) and E[z z'] (N, P, P) of the product of all modes but one."""
        means, squares = [], []
        for k, (mode, at_N) in enumerate(zip(modes, self.at)):
            if k != without:
                means.append(mode.mean_UR[at_N])
                squares.append(mode.second_URR[at_N])
        N = len(self.y_N)
        return product(means, N, 1), product(squares, N, 2)

    def gathered(self, k: int, values_N: Array) -> Array:
        """Sums over the entries of every place of a mode."""
        sums_U = np.zeros((len(self.places[k]), *values_N.shape[1:]))
        np.add.at(sums_U, self.at[k], values_N)
        return sums_U

    def misses(self, state: State) -> float:
        """sum_n E[(y - W . z)^2]."""
        z_NP, z_NPP = self.moments(state.modes)
        cross = self.y_N @ (z_NP @ state.core.mean_P)
        squares = np.tensordot(z_NPP.sum(0), state.core.second_PP)
        return float(self.y_N @ self.y_N - 2 * cross + squares)


def update_means(entries: Entries, state: State, config: Config) -> State:
    """The core and the modes in turn, the noise as it is."""
    core = update_core(entries, state, config)
    state = replace(state, core=core)
    modes = list(state.modes)
    for k in range(len(modes)):
        modes[k] = update_mode(entries, state, k, config)
        state = replace(state, modes=tuple(modes))
    return state


def improve(entries: Entries, state: State, config: Config) -> tuple[State, float]:
    """Core, modes and noise in turn; the bound after them, in nats an entry."""
    state = update_means(entries, state, config)
    N = len(entries.y_N)
    shape = config.noise_shape + N / 2
    rate = config.noise_rate + entries.misses(state) / 2
    state = replace(state, shape=shape, rate=rate)
    height = bound(state, config, N)
    return state, height / N


def climbed(entries: Entries, start: State, config: Config) -> Run[State]:
    """What becomes of a start, the noise held small at first."""
    for _ in range(config.held_steps):
        start = update_means(entries, start, config)
    return ascend(
        lambda state: improve(entries, state, config),
        start,
        tol=config.tol,
        max_iter=config.max_iter,
        ahead=True,
    )


def update_core(entries: Entries, state: State, config: Config) -> Core:
    """The core's posterior, all functions and the noise believed."""
    z_NP, z_NPP = entries.moments(state.modes)
    tau = state.shape / state.rate
    P = z_NP.shape[1]
    told_PP = tau * z_NPP.sum(0)
    told_P = tau * entries.y_N @ z_NP
    precision_PP = told_PP + np.eye(P) / config.core_variance
    cov_PP = np.linalg.inv(precision_PP)
    cov_PP = symmetric(cov_PP)
    mean_P = cov_PP @ told_P
    second_PP = cov_PP + outer(mean_P, mean_P)
    _, log_det = np.linalg.slogdet(precision_PP)
    square = np.trace(second_PP) / config.core_variance
    log_ratio = P * math.log(config.core_variance) + log_det
    apart = divergence(square, log_ratio, P)
    return Core(mean_P, second_PP, float(apart))


def update_mode(entries: Entries, state: State, k: int, config: Config) -> Mode:
    """The posterior of a mode's functions by filter and smoother, all else believed."""
    shape = (config.rank,) * len(state.modes)
    z_NP, z_NPP = entries.moments(state.modes, without=k)
    a_NR, a_NRR = contracted(state.core, shape, k, z_NP, z_NPP)
    tau = state.shape / state.rate
    precision_URR = tau * entries.gathered(k, a_NRR)
    pull_UR = tau * entries.gathered(k, a_NR * entries.y_N[:, None])
    return known(state.modes[k], precision_URR, pull_UR, config)


def known(mode: Mode, precision_URR: Array, pull_UR: Array, config: Config) -> Mode:
    """A mode smoothed by what is known at its places."""
    found = smoothed(mode.place_U, mode.length, precision_URR, pull_UR, config)
    second_URR = second(found.mean_UR, found.cov_URR)
    pulled = (pull_UR * found.mean_UR).sum()
    held = 0.5 * (precision_URR * second_URR).sum()
    apart = float(pulled - held - found.log_mass)
    return Mode(mode.place_U, mode.length, precision_URR, pull_UR, found.mean_UR, second_URR, apart)


def smoothed(place_U: Array, length: float, precision_URR: Array, pull_UR: Array, config: Config) -> Smoothed:
    """Functions at places, given what is known there."""
    chain = steps(place_U, config.rank, config.kernel, length, config.variance)
    return smooth(chain, precision_URR, pull_UR)


def bound(state: State, config: Config, N: int) -> float:
    """The evidence lower bound in nats, right after the noise was updated."""
    shape, rate = config.noise_shape, config.noise_rate
    gain = gammaln(state.shape) - gammaln(shape)
    scales = shape * math.log(rate) - state.shape * math.log(state.rate)
    # what the noise's own update leaves of the likelihood, the prior and the entropy of tau
    noise = gain + scales - N / 2 * LOG_2PI
    apart = state.core.divergence + sum(mode.divergence for mode in state.modes)
    return float(noise - apart)


@method(title="Functional Tucker decomposition", year=2024, tags={"estimator", "em"},
        paper="Functional Bayesian Tucker Decomposition for Continuous-indexed Tensor Data")
class FunctionalTucker(Configured, RegressorMixin, BaseEstimator, config=Config):
    """Entries of a tensor with continuous indexes, predicted at any others; see the card and `Config`."""

    def fit(self, X: Any, y: Any) -> FunctionalTucker:
        """Fit to entries y (N,) at indexes X (N, K); returns self.

        `ValueError` for values that are not finite, or lengths that are neither one nor one a mode.
        """
        config = self._config()
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        lengths = _lengths(config, X.shape[1])
        self.mean_ = float(y.mean())
        self.scale_ = float(y.std()) or 1.0
        centred_N = y - self.mean_
        entries = Entries(X, centred_N / self.scale_)
        rng = check_random_state(config.random_state)
        starts = [first(entries, lengths, config, rng) for _ in range(config.n_init)]
        run = highest([climbed(entries, start, config) for start in starts])
        self._state: State = run.state
        self.lower_bounds_ = run.bounds
        self.converged_ = run.converged
        self.core_ = run.state.core.mean_P.reshape((config.rank,) * X.shape[1])
        self.noise_std_ = self.scale_ * math.sqrt(run.state.rate / run.state.shape)
        return self

    def functions(self, mode: int, places: Any) -> tuple[Array, Array]:
        """Means (M, R) and covariances (M, R, R) of a mode's functions at any places (M,); an error before `fit`."""
        check_is_fitted(self)
        config, own = self._config(), self._state.modes[mode]
        wanted_M = np.asarray(places, dtype=np.float64)
        both = np.concatenate([own.place_U, wanted_M])
        place_U, at_B = np.unique(both, return_inverse=True)
        old_V, new_M = np.split(at_B, [len(own.place_U)])
        U, R = len(place_U), config.rank
        precision_URR = np.zeros((U, R, R))
        pull_UR = np.zeros((U, R))
        precision_URR[old_V] = own.precision_URR
        pull_UR[old_V] = own.pull_UR
        found = smoothed(place_U, own.length, precision_URR, pull_UR, config)
        return found.mean_UR[new_M], found.cov_URR[new_M]

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Means (M,) at indexes X (M, K), and with `return_std` standard deviations without the noise's.

        An error before `fit`.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        found = [self.functions(k, column) for k, column in enumerate(X.T)]
        M = len(X)
        core = self._state.core
        means = [mean_MR for mean_MR, _ in found]
        mean_M = product(means, M, 1) @ core.mean_P
        predicted_M = self.mean_ + self.scale_ * mean_M
        if not return_std:
            return predicted_M
        squares = [second(mean_MR, cov_MRR) for mean_MR, cov_MRR in found]
        z_MPP = product(squares, M, 2)
        square_M = np.tensordot(z_MPP, core.second_PP)
        variance_M = square_M - mean_M**2
        std_M = np.sqrt(np.maximum(variance_M, 0))
        return predicted_M, self.scale_ * std_M


def first(entries: Entries, lengths: list[float], config: Config, rng: np.random.RandomState) -> State:
    """Random cosines of the kernel's spectrum for functions, little noise, no core yet."""
    R = config.rank
    freedom = 1 if config.kernel == "matern12" else 3  # the spectrum is Student's t
    modes = []
    for place_U, length in zip(entries.places, lengths):
        frequency_R = rng.standard_t(freedom, R) / length
        phase_R = rng.uniform(0, 2 * np.pi, R)
        angle_UR = place_U[:, None] * frequency_R + phase_R
        mean_UR = np.sqrt(2 * config.variance) * np.cos(angle_UR)
        nothing_URR = np.zeros((len(place_U), R, R))
        second_URR = outer(mean_UR, mean_UR)
        modes.append(Mode(place_U, length, nothing_URR, np.zeros_like(mean_UR), mean_UR, second_URR))
    P = R ** len(modes)
    nothing = Core(np.zeros(P), np.zeros((P, P)))
    return State(tuple(modes), nothing, 1.0, HELD)


def _lengths(config: Config, K: int) -> list[float]:
    """A length for every mode."""
    found = np.broadcast_to(config.length, (K,)) if np.ndim(config.length) == 0 else np.asarray(config.length)
    if found.shape != (K,):
        raise ValueError(f"length has {found.size} values for {K} modes; expected one, or one a mode")
    return found.tolist()


def example(generator: torch.Generator) -> dict[str, Any]:
    """Sixty entries of a product of two waves."""
    x_N2 = torch.rand(60, 2, generator=generator, dtype=torch.float64)
    noise_N = torch.randn(60, generator=generator, dtype=torch.float64)
    first_N, second_N = x_N2.T
    wave_N = torch.sin(4 * first_N) * torch.cos(5 * second_N)
    y_N = wave_N + 0.05 * noise_N
    estimator = FunctionalTucker(rank=1, n_init=1, max_iter=8, random_state=0)
    return {"estimator": estimator, "X": x_N2.numpy(), "y": y_N.numpy()}
