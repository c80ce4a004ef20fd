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
from mixwell.density._ascent import ascend, highest
from mixwell.density._gaussian import Array, log_positive
from mixwell.density._options import Configured


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the mixture of Markov chains."""

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
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.init not in ("spectral", "random"):
            raise ValueError(f"init is {self.init!r}; expected 'spectral' or 'random'")
        if self.smoothing < 0 or self.tol < 0:
            raise ValueError(f"smoothing is {self.smoothing} and tol {self.tol}; expected 0 or more")


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
        path = np.asarray(path)
        rows = path[:-1] if actions is None else np.asarray(actions[n])[: len(path) - 1] * states + path[:-1]
        edge = int(0.45 * len(rows))
        for target, part in ((counts, slice(None)), (early, slice(edge)), (late, slice(len(rows) - edge, None))):
            np.add.at(target[n], (rows[part], path[1:][part]), 1.0)
    return Walks(np.array([int(np.asarray(path)[0]) for path in trajectories]), counts, (early, late))


def pairwise_distances(halves: tuple[Array, Array], rank: int, min_visits: int) -> Array:
    """Debiased squared distances (N, N) between trajectories; pairs without a common row get the mean of the others."""
    visits = [h.sum(2) for h in halves]
    first_NRS, second_NRS = (h / np.maximum(v, 1)[:, :, None] for h, v in zip(halves, visits))
    met_NR = np.minimum(*visits) >= min_visits
    N = len(met_NR)
    best_NN = np.full((N, N), -np.inf)
    for row in np.flatnonzero(met_NR.sum(0) >= 2):
        index = np.flatnonzero(met_NR[:, row])
        a, b = first_NRS[index, row], second_NRS[index, row]
        basis, _, other = np.linalg.svd(a.T @ b)
        both = np.linalg.qr(np.hstack([basis[:, :rank], other[:rank].T]))[0]
        a, b = a @ both, b @ both
        own = (a * b).sum(1)
        cross = a @ b.T
        block = np.ix_(index, index)
        best_NN[block] = np.maximum(best_NN[block], own[:, None] + own - cross - cross.T)
    known = np.isfinite(best_NN)
    return np.where(known, best_NN, best_NN[known].mean() if known.any() else 0.0)


@method(
    title="Mixture of Markov chains",
    paper="Learning Mixtures of Markov Chains and MDPs",
    year=2023,
    tags={"estimator", "em", "responsibilities"},
)
class MarkovChainMixture(Configured, config=Config):
    """Mixture of Markov chains, or of decision processes where actions are given; see the card and `Config`."""

    def fit(self, trajectories: Any, actions: Any = None) -> MarkovChainMixture:
        """Fit to state sequences numbered from 0, and the actions taken in them."""
        config = self._config()
        _check(trajectories, actions)
        self._acted = actions is not None
        self._states = 1 + max(int(np.max(path)) for path in trajectories)
        self._actions = 1 if actions is None else 1 + max(int(np.max(path)) for path in actions)
        walks = count_walks(trajectories, actions, self._states, self._actions)
        if len(walks.first_N) < config.n_components:
            raise ValueError(f"{len(walks.first_N)} trajectories for {config.n_components} components; give more")
        rng = check_random_state(config.random_state)
        tries = 1 if config.init == "spectral" else config.n_init
        starts = [self._first(walks, config, rng) for _ in range(tries)]
        run = highest([ascend(lambda state: self._step(walks, state.resp_NK, config), Chains(resp_NK), tol=config.tol,
                              max_iter=config.max_iter, ahead=True) for resp_NK in starts])
        _, log_start_KS, log_row_KRS, weights_K = run.state
        self.lower_bounds_, self._log = run.bounds, (log_start_KS, log_row_KRS)
        self.weights_, self.starts_ = weights_K, np.exp(log_start_KS)
        self.transitions_ = np.exp(log_row_KRS).reshape(-1, self._actions, self._states, self._states)
        return self

    def _first(self, walks: Walks, config: Config, rng: np.random.RandomState) -> Array:
        K = config.n_components
        if config.init == "random":
            return rng.dirichlet(np.ones(K), len(walks.first_N))
        if K == 1:
            return np.ones((len(walks.first_N), 1))
        distance_NN = pairwise_distances(walks.halves, K, config.min_visits)
        scale = max(float(np.median(np.abs(distance_NN - np.median(distance_NN)))), 1e-12)
        affinity_NN = np.exp(-(distance_NN - distance_NN.min()) / (2 * scale))
        labels = SpectralClustering(K, affinity="precomputed", random_state=rng.randint(2**31)).fit(
            0.5 * (affinity_NN + affinity_NN.T)).labels_
        return np.eye(K)[labels]

    def _step(self, walks: Walks, resp_NK: Array, config: Config) -> tuple[Chains, float]:
        """M step, then E step; the mean log-likelihood, prior included, between them."""
        log_start_KS, log_row_KRS, weights_K = maximise(walks, resp_NK, self._states, config.smoothing)
        log_NK = log_joint(walks, log_start_KS, log_row_KRS, weights_K)
        prior = config.smoothing * float(log_start_KS.sum() + log_row_KRS.sum()) if config.smoothing else 0.0
        bound = (float(logsumexp(log_NK, axis=1).sum()) + prior) / len(log_NK)
        return Chains(softmax(log_NK, axis=1), log_start_KS, log_row_KRS, weights_K), bound

    def _joint(self, trajectories: Any, actions: Any) -> Array:
        check_is_fitted(self, "weights_")
        _check(trajectories, actions)
        if (actions is not None) != self._acted:
            raise ValueError("actions are missing; the model was fitted with actions" if self._acted else
                             "the model was fitted without actions; leave them out")
        taken = () if actions is None else actions
        for name, paths, known in (("state", trajectories, self._states), ("action", taken, self._actions)):
            top = max((int(np.max(path)) for path in paths), default=0)
            if top >= known:
                raise ValueError(f"{name} {top} was not seen in fit, which had {known}")
        walks = count_walks(trajectories, actions, self._states, self._actions)
        return log_joint(walks, *self._log, self.weights_)

    def log_likelihood(self, trajectories: Any, actions: Any = None) -> Array:
        """Log probability of every trajectory (N,), in nats."""
        return logsumexp(self._joint(trajectories, actions), axis=1)

    def predict_proba(self, trajectories: Any, actions: Any = None) -> Array:
        """Probability of every component (N, K)."""
        return softmax(self._joint(trajectories, actions), axis=1)

    def predict(self, trajectories: Any, actions: Any = None) -> Array:
        """The most probable component of every trajectory (N,)."""
        return self._joint(trajectories, actions).argmax(1)


def maximise(walks: Walks, resp_NK: Array, states: int, smoothing: float) -> tuple[Array, Array, Array]:
    """Log start probabilities (K, S), log transition rows (K, R, S) and weights (K,)."""
    start_KS = resp_NK.T @ np.eye(states)[walks.first_N] + smoothing
    row_KRS = np.einsum("nk,nrs->krs", resp_NK, walks.counts_NRS, optimize=True) + smoothing
    tiny = 1e-300  # rows that were never met stay uniform
    row_KRS = np.where(row_KRS.sum(2, keepdims=True) > 0, row_KRS, 1.0)
    with np.errstate(divide="ignore"):
        log_start_KS = np.log(start_KS / np.maximum(start_KS.sum(1, keepdims=True), tiny))
        log_row_KRS = np.log(row_KRS / row_KRS.sum(2, keepdims=True))
    return np.maximum(log_start_KS, -1e3), np.maximum(log_row_KRS, -1e3), resp_NK.mean(0)


def log_joint(walks: Walks, log_start_KS: Array, log_row_KRS: Array, weights_K: Array) -> Array:
    """Log weight plus log probability of every trajectory and component (N, K)."""
    flat_NV = walks.counts_NRS.reshape(len(walks.first_N), -1)
    return (log_positive(weights_K) + log_start_KS[:, walks.first_N].T
            + flat_NV @ log_row_KRS.reshape(len(weights_K), -1).T)


def _check(trajectories: Any, actions: Any) -> None:
    if len(trajectories) == 0 or any(np.asarray(p).ndim != 1 or len(p) < 2 for p in trajectories):
        raise ValueError("expected one or more trajectories of at least two states each")
    for name, paths in (("trajectories", trajectories), ("actions", actions)):
        for n, path in enumerate(paths if paths is not None else ()):
            path = np.asarray(path)
            if not np.issubdtype(path.dtype, np.integer) or path.min() < 0:
                raise ValueError(f"{name}[{n}] holds {path.dtype} {path.min()}; expected whole numbers from 0")
    if actions is not None:
        for n, (path, taken) in enumerate(zip(trajectories, actions)):
            if len(actions) != len(trajectories) or len(taken) not in (len(path) - 1, len(path)):
                raise ValueError(f"actions[{n}] has {len(taken)} entries for {len(path)} states; expected one a step")


def example(generator: torch.Generator) -> dict[str, Any]:
    """Thirty walks on a ring of four states, half of them forwards."""
    step_N1 = 1 - 2 * (torch.arange(30) % 2)[:, None]
    moves_NT = torch.where(torch.rand(30, 30, generator=generator) < 0.8, step_N1, 0)
    return {"estimator": MarkovChainMixture(random_state=0), "trajectories": (moves_NT.cumsum(1) % 4).numpy()}
