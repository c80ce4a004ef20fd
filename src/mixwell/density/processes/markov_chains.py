"""Mixture of Markov chains or decision processes, from short unlabelled trajectories: spectral start, then EM.

**Equation:** a trajectory of class k has probability p_k(s_1) prod_t P_k(s_t+1 | s_t, a_t). Start: for every state and
action, with q_n1 and q_n2 the next-state frequencies in the first and second half of trajectory n, the top K left
singular vectors V of sum_n q_n1 q_n2' span the classes' rows; dist(n, m) = the largest over (s, a) of
<V'(q_n1 - q_m1), V'(q_n2 - q_m2)>, whose halves are independent, so that noise does not add up; spectral clustering of
exp(-dist / scale). EM: r_nk proportional to the trajectory's probability; P_k = smoothed r-weighted counts.

**Shapes:** trajectories: integers (N, T), or a list of 1-D arrays; actions: the same, one shorter or of equal length;
`transitions_` (K, A, S, S), `starts_` (K, S), `weights_` (K,).

**Reference:** Kausik, Tan, Tewari (2023), Learning Mixtures of Markov Chains and MDPs, arXiv:2211.09403.

**Differs:** written from memory of the paper. Halves are the first and the last 45 % of the steps, with a gap so that
they are nearly independent. Rows met fewer than `min_visits` times in either half by either trajectory are left out of
a distance. Affinities are exponential, not thresholded. `smoothing` is a Dirichlet prior, part of what EM climbs.

**Fails when:** halves visit few common rows (short trajectories, many states); classes differ in one rare row.

**Cost:** O(N S^2 A) memory; O(N^2 S A K) for the distances; O(N K S^2 A) an EM step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp, softmax
from sklearn.cluster import SpectralClustering
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from mixwell.core.method import method
from mixwell.density._ascent import Run, ascend, highest
from mixwell.density._gaussian import TINY, Array, log_positive, symmetric
from mixwell.density._options import Configured


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the mixture of Markov chains; `ValueError` for one out of range."""

    n_components: int = 2  # K
    init: Literal["spectral", "random"] = "spectral"  # the paper's start, or random responsibilities
    min_visits: int = 1  # visits of a row in each half of both trajectories, to count in their distance
    smoothing: float = 0.1  # pseudo-count of every transition and start
    n_init: int = 1  # random starts; the likeliest is kept
    tol: float = 1e-6  # stop when a step gains less, in nats a trajectory
    max_iter: int = 200
    random_state: Any = None  # of random starts and of the clustering

    def __post_init__(self) -> None:
        for name in ("n_components", "min_visits", "n_init", "max_iter"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        if self.init not in ("spectral", "random"):
            raise ValueError(f"init is {self.init!r}; expected 'spectral' or 'random'")
        for name in ("smoothing", "tol"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} is {value}; expected 0 or more")


@dataclass(frozen=True)
class Walks:
    """First states (N,), and transition counts by (action, state) row: all, and in two halves (N, R, S)."""

    first_N: Array
    counts_NRS: Array
    halves: tuple[Array, Array]


class Chains(NamedTuple):
    """Responsibilities, and the chains that they were computed from; empty before the first step."""

    resp_NK: Array
    log_start_KS: Array = np.empty(0)
    log_row_KRS: Array = np.empty(0)
    weights_K: Array = np.empty(0)


def count_walks(trajectories: Sequence[Any], actions: Sequence[Any] | None, states: int, n_actions: int) -> Walks:
    """Counts of every trajectory; the halves leave a gap of a tenth of the steps."""
    shape = (len(trajectories), n_actions * states, states)
    counts, early, late = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for n, path in enumerate(trajectories):
        states_T = np.asarray(path)
        from_T, to_T = states_T[:-1], states_T[1:]
        rows_T = from_T
        if actions is not None:
            taken_T = np.asarray(actions[n])[: len(from_T)]
            rows_T = taken_T * states + from_T
        edge = int(0.45 * len(rows_T))
        second = slice(len(rows_T) - edge, None)
        np.add.at(counts[n], (rows_T, to_T), 1.0)
        np.add.at(early[n], (rows_T[:edge], to_T[:edge]), 1.0)
        np.add.at(late[n], (rows_T[second], to_T[second]), 1.0)
    first_N = np.array([int(np.asarray(path)[0]) for path in trajectories])
    return Walks(first_N, counts, (early, late))


def pairwise_distances(halves: tuple[Array, Array], rank: int, min_visits: int) -> Array:
    """Debiased squared distances (N, N) between trajectories; pairs without a common row get the mean of the others."""
    early_NR, late_NR = (half.sum(2) for half in halves)
    early_NRS = halves[0] / np.maximum(early_NR, 1)[:, :, None]
    late_NRS = halves[1] / np.maximum(late_NR, 1)[:, :, None]
    met_NR = np.minimum(early_NR, late_NR) >= min_visits
    N = len(met_NR)
    best_NN = np.full((N, N), -np.inf)
    for row in np.flatnonzero(met_NR.sum(0) >= 2):
        index = np.flatnonzero(met_NR[:, row])
        block = np.ix_(index, index)
        distance = row_distances(early_NRS[index, row], late_NRS[index, row], rank)
        best_NN[block] = np.maximum(best_NN[block], distance)
    known_NN = np.isfinite(best_NN)
    mean = best_NN[known_NN].mean() if known_NN.any() else 0.0
    return np.where(known_NN, best_NN, mean)


def row_distances(early_MS: Array, late_MS: Array, rank: int) -> Array:
    """Debiased squared distances (M, M) between one row of M trajectories, in the subspace that both halves share."""
    basis, _, other = np.linalg.svd(early_MS.T @ late_MS)
    directions = np.hstack([basis[:, :rank], other[:rank].T])
    subspace, _ = np.linalg.qr(directions)
    a, b = early_MS @ subspace, late_MS @ subspace
    own_M = (a * b).sum(1)  # of halves with noise of their own, so that the noise adds no square
    cross_MM = a @ b.T
    return own_M[:, None] + own_M - cross_MM - cross_MM.T


@method(
    title="Mixture of Markov chains",
    paper="Learning Mixtures of Markov Chains and MDPs",
    year=2023,
    tags={"estimator", "em", "responsibilities"},
)
class MarkovChainMixture(Configured, config=Config):
    """Mixture of Markov chains, or of decision processes where actions are given; see the card and `Config`."""

    def fit(self, trajectories: Any, actions: Any = None) -> MarkovChainMixture:
        """Fit to state sequences numbered from 0, and the actions taken in them.

        `ValueError` for paths of fewer than two states, entries that are not whole numbers from 0, actions that do not
        match the states, or fewer trajectories than components.
        """
        config = self._config()
        _check(trajectories, actions)
        self._acted = actions is not None
        self._states = _count(trajectories)
        self._actions = _count(actions) if self._acted else 1
        walks = count_walks(trajectories, actions, self._states, self._actions)
        N = len(walks.first_N)
        if config.n_components > N:
            raise ValueError(f"{N} trajectories for {config.n_components} components; give more")
        rng = check_random_state(config.random_state)
        tries = 1 if config.init == "spectral" else config.n_init
        starts = [self._first(walks, config, rng) for _ in range(tries)]
        run = highest([self._ascend(walks, start_NK, config) for start_NK in starts])
        chains = run.state
        self.lower_bounds_ = run.bounds
        self.weights_ = chains.weights_K
        self._log = (chains.log_start_KS, chains.log_row_KRS)
        self.starts_ = np.exp(chains.log_start_KS)
        row_KRS = np.exp(chains.log_row_KRS)
        shape = (-1, self._actions, self._states, self._states)
        self.transitions_ = row_KRS.reshape(shape)
        return self

    def _first(self, walks: Walks, config: Config, rng: np.random.RandomState) -> Array:
        """Responsibilities (N, K) to start from."""
        K, N = config.n_components, len(walks.first_N)
        if config.init == "random":
            return rng.dirichlet(np.ones(K), N)
        if K == 1:
            return np.ones((N, 1))
        distance_NN = pairwise_distances(walks.halves, K, config.min_visits)
        deviation_NN = np.abs(distance_NN - np.median(distance_NN))
        scale = max(float(np.median(deviation_NN)), 1e-12)
        gap_NN = distance_NN - distance_NN.min()
        affinity_NN = np.exp(-gap_NN / (2 * scale))
        clustering = SpectralClustering(K, affinity="precomputed", random_state=rng.randint(2**31))
        labels_N = clustering.fit(symmetric(affinity_NN)).labels_
        return np.eye(K)[labels_N]

    def _ascend(self, walks: Walks, start_NK: Array, config: Config) -> Run[Chains]:
        return ascend(
            lambda chains: self._step(walks, chains.resp_NK, config),
            Chains(start_NK),
            tol=config.tol,
            max_iter=config.max_iter,
            ahead=True,
        )

    def _step(self, walks: Walks, resp_NK: Array, config: Config) -> tuple[Chains, float]:
        """M step, then E step; the mean log-likelihood, prior included, between them."""
        log_start_KS, log_row_KRS, weights_K = maximise(walks, resp_NK, self._states, config.smoothing)
        log_NK = log_joint(walks, log_start_KS, log_row_KRS, weights_K)
        log_N = logsumexp(log_NK, axis=1)
        total = float(log_N.sum())
        prior = 0.0
        if config.smoothing:
            log_rows = log_start_KS.sum() + log_row_KRS.sum()
            prior = config.smoothing * float(log_rows)
        new_resp_NK = softmax(log_NK, axis=1)
        chains = Chains(new_resp_NK, log_start_KS, log_row_KRS, weights_K)
        return chains, (total + prior) / len(log_N)

    def _joint(self, trajectories: Any, actions: Any) -> Array:
        """Log joint probabilities (N, K) of checked trajectories."""
        check_is_fitted(self, "weights_")
        _check(trajectories, actions)
        acted = actions is not None
        if self._acted and not acted:
            raise ValueError("actions are missing; the model was fitted with actions")
        if acted and not self._acted:
            raise ValueError("the model was fitted without actions; leave them out")
        _check_known("state", trajectories, self._states)
        if acted:
            _check_known("action", actions, self._actions)
        walks = count_walks(trajectories, actions, self._states, self._actions)
        return log_joint(walks, *self._log, self.weights_)

    def log_likelihood(self, trajectories: Any, actions: Any = None) -> Array:
        """Log probability of every trajectory (N,), in nats; `ValueError` for states or actions unseen in `fit`."""
        return logsumexp(self._joint(trajectories, actions), axis=1)

    def predict_proba(self, trajectories: Any, actions: Any = None) -> Array:
        """Probability of every component (N, K); errors as of `log_likelihood`."""
        return softmax(self._joint(trajectories, actions), axis=1)

    def predict(self, trajectories: Any, actions: Any = None) -> Array:
        """The most probable component of every trajectory (N,); errors as of `log_likelihood`."""
        return self._joint(trajectories, actions).argmax(1)


def maximise(walks: Walks, resp_NK: Array, states: int, smoothing: float) -> tuple[Array, Array, Array]:
    """Log start probabilities (K, S), log transition rows (K, R, S) and weights (K,)."""
    start_NS = np.eye(states)[walks.first_N]
    start_KS = resp_NK.T @ start_NS
    start_KS = start_KS + smoothing
    row_KRS = np.einsum("nk,nrs->krs", resp_NK, walks.counts_NRS, optimize=True)
    row_KRS = row_KRS + smoothing
    met_KR1 = row_KRS.sum(2, keepdims=True) > 0
    row_KRS = np.where(met_KR1, row_KRS, 1.0)  # rows that were never met stay uniform
    return _log_shares(start_KS), _log_shares(row_KRS), resp_NK.mean(0)


def _log_shares(counts: Array) -> Array:
    """Logarithms of the counts' shares along the last axis, -1000 where there are none."""
    total = counts.sum(-1, keepdims=True)
    share = counts / np.maximum(total, TINY)
    with np.errstate(divide="ignore"):
        log_share = np.log(share)
    return np.maximum(log_share, -1e3)


def log_joint(walks: Walks, log_start_KS: Array, log_row_KRS: Array, weights_K: Array) -> Array:
    """Log weight plus log probability of every trajectory and component (N, K)."""
    N, K = len(walks.first_N), len(weights_K)
    counts_NV = walks.counts_NRS.reshape(N, -1)
    log_row_KV = log_row_KRS.reshape(K, -1)
    log_walk_NK = counts_NV @ log_row_KV.T
    log_start_KN = log_start_KS[:, walks.first_N]
    log_weights_K = log_positive(weights_K)
    log_begin_NK = log_weights_K + log_start_KN.T
    return log_begin_NK + log_walk_NK


def _count(paths: Any) -> int:
    """How many states, or actions, there are."""
    largest = [int(np.max(path)) for path in paths]
    return 1 + max(largest)


def _check(trajectories: Any, actions: Any) -> None:
    short = [path for path in trajectories if np.asarray(path).ndim != 1 or len(path) < 2]
    if len(trajectories) == 0 or short:
        raise ValueError("expected one or more trajectories of at least two states each")
    _check_numbers("trajectories", trajectories)
    if actions is None:
        return
    _check_numbers("actions", actions)
    for n, (path, taken) in enumerate(zip(trajectories, actions)):
        as_many = len(taken) in (len(path) - 1, len(path))
        if len(actions) != len(trajectories) or not as_many:
            raise ValueError(f"actions[{n}] has {len(taken)} entries for {len(path)} states; expected one a step")


def _check_numbers(name: str, paths: Any) -> None:
    for n, path in enumerate(paths):
        entries = np.asarray(path)
        whole = np.issubdtype(entries.dtype, np.integer)
        if not whole or entries.min() < 0:
            raise ValueError(f"{name}[{n}] holds {entries.dtype} {entries.min()}; expected whole numbers from 0")


def _check_known(name: str, paths: Any, known: int) -> None:
    largest = _count(paths) - 1
    if largest >= known:
        raise ValueError(f"{name} {largest} was not seen in fit, which had {known}")


def example(generator: torch.Generator) -> dict[str, Any]:
    """Thirty walks on a ring of four states, half of them forwards."""
    forwards_N = torch.arange(30) % 2
    step_N = 1 - 2 * forwards_N
    chance_NT = torch.rand(30, 30, generator=generator)
    moves_NT = torch.where(chance_NT < 0.8, step_N[:, None], 0)
    state_NT = moves_NT.cumsum(1) % 4
    return {
        "estimator": MarkovChainMixture(random_state=0),
        "trajectories": state_NT.numpy(),
    }
