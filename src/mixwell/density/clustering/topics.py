"""Multi-grain clustering topic model: documents in clusters that have topics of their own beside common ones.

**Equation:** a document draws its cluster eta ~ pi, local proportions theta ~ Dir(alpha) over the topics of eta,
global ones theta' ~ Dir(alpha'), and a share omega ~ Beta(gamma); each word draws delta ~ Bern(omega) and a topic from
theta (delta = 1) or theta' (delta = 0). Variational EM with q(eta) q(omega) prod_j q(theta_j) q(theta')
prod_n q(delta_n, z_n | eta): given cluster j a word's normaliser is Z_nj = e^E[log omega] sum_k e^E[log theta_jk]
beta_jk(w) + e^E[log(1 - omega)] sum_k e^E[log theta'_k] beta'_k(w), and q(eta = j) is proportional to pi_j prod_n Z_nj.

**Shapes:** X (N, V) word counts; `local_topics_` (J, L, V), `global_topics_` (G, V), `weights_` (J,), `resp_` (N, J),
`local_shares_` (N,), the mean of omega.

**Reference:** Xie and Xing (2013), Integrating Document Clustering and Topic Modeling, UAI, arXiv:1309.6874, section 3.

**Differs:** words' posteriors depend on the document's cluster (a tighter bound than the paper's fully factored one);
topics have a symmetric Dirichlet prior, `topic_prior`, at its mode; Dirichlet parameters are given, not fitted.
Written from memory of the paper.

**Fails when:** documents are so long that the first assignment never changes: start well (`init`), or several times.

**Cost:** O(N V J (L + G)) a sweep, dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.special import betaln, digamma, gammaln, softmax
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from mixwell.core.method import method
from mixwell.density._ascent import Run, ascend, highest
from mixwell.density._gaussian import TINY, Array, log_positive
from mixwell.density._options import Configured

FORMING = 2  # iterations in which the clusters of a start stay, so that their topics form


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the multi-grain clustering topic model; `ValueError` for one out of range."""

    n_clusters: int = 4  # J
    n_local: int = 3  # L topics of every cluster
    n_global: int = 3  # G topics of all
    local_prior: float = 0.5  # alpha of the Dirichlet over local topics
    global_prior: float = 0.5  # alpha' of the one over global topics
    share_prior: tuple[float, float] = (1.0, 1.0)  # gamma of the Beta over the local share
    topic_prior: float = 0.01  # pseudo-count of every word in every topic
    max_iter: int = 50
    inner_iter: int = 5  # sweeps over a document's posteriors in each iteration
    tol: float = 1e-4  # stop when the bound gains less, as a share of it
    n_init: int = 3  # starts; the highest bound is kept
    init: Literal["kmeans", "random"] = "kmeans"  # clusters of the start, from square roots of word shares or by chance
    random_state: Any = None

    def __post_init__(self) -> None:
        for name in ("n_clusters", "n_local", "n_global", "max_iter", "inner_iter", "n_init"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        priors = (self.local_prior, self.global_prior, *self.share_prior, self.topic_prior)
        if min(priors) <= 0:
            raise ValueError(f"local_prior, global_prior, share_prior, topic_prior are {priors}; expected above 0")
        if self.tol < 0:
            raise ValueError(f"tol is {self.tol}; expected 0 or more")
        if self.init not in ("kmeans", "random"):
            raise ValueError(f"init is {self.init!r}; expected 'kmeans' or 'random'")


@dataclass
class Posterior:
    """The variational posterior of N documents."""

    resp_NJ: Array
    local_NJL: Array  # Dirichlet parameters
    global_NG: Array
    share_N2: Array  # Beta parameters of the local share


class Topics(NamedTuple):
    """What is estimated of the clusters."""

    weights_J: Array
    local_JLV: Array
    global_GV: Array


class State(NamedTuple):
    """Where a fit stands."""

    posterior: Posterior
    topics: Topics


def log_mean(parameters: Array) -> Array:
    """E[log theta] under Dirichlets along the last axis."""
    total = parameters.sum(-1, keepdims=True)
    return digamma(parameters) - digamma(total)


def dirichlet_kl(parameters: Array, prior: float) -> float:
    """Sum of KL(Dir(parameters) | Dir(prior, prior, ...)) over all but the last axis."""
    K = parameters.shape[-1]
    prior_constant = gammaln(K * prior) - K * gammaln(prior)
    constant = gammaln(parameters.sum(-1)) - gammaln(parameters).sum(-1)
    excess = parameters - prior
    expected = (excess * log_mean(parameters)).sum(-1)
    return float((constant - prior_constant + expected).sum())


def beta_kl(parameters: Array, prior: tuple[float, float]) -> float:
    """Sum of KL(Beta(parameters) | Beta(prior)) over rows."""
    first, second = parameters[:, 0], parameters[:, 1]
    constant = betaln(*prior) - betaln(first, second)
    excess = parameters - np.array(prior)
    expected = (excess * log_mean(parameters)).sum(-1)
    return float((constant + expected).sum())


@method(
    title="Multi-grain clustering topic model",
    paper="Integrating Document Clustering and Topic Modeling",
    year=2013,
    tags={"estimator", "em", "responsibilities", "sklearn"},
)
class ClusterTopics(ClusterMixin, Configured, BaseEstimator, config=Config):
    """Clusters and topics of word counts, together; see the module's card. `lower_bounds_` are the winner's."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags

    def fit(self, X: Any, y: Any = None) -> ClusterTopics:
        """Fit counts X (N, V); returns self.

        `ValueError` for negative counts, fewer documents than clusters, or options out of range.
        """
        config = self._config()
        X = self._counts(X, reset=True)
        if len(X) < config.n_clusters:
            raise ValueError(f"{len(X)} documents for {config.n_clusters} clusters; expected at least as many")
        rng = check_random_state(config.random_state)
        best = highest([_fit_once(X, config, rng) for _ in range(config.n_init)])
        posterior, topics = best.state
        self.weights_ = topics.weights_J
        self.local_topics_ = topics.local_JLV
        self.global_topics_ = topics.global_GV
        self.lower_bounds_ = best.bounds
        self.n_iter_ = len(best.bounds)
        self.resp_ = posterior.resp_NJ
        self.labels_ = posterior.resp_NJ.argmax(1)
        self.local_shares_ = posterior.share_N2[:, 0] / posterior.share_N2.sum(1)
        return self

    def predict(self, X: Any) -> Array:
        """The most probable cluster of every document (N,); errors as of `predict_proba`."""
        return self.predict_proba(X).argmax(1)

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the clusters (N, J); `ValueError` for negative counts or other words than in `fit`."""
        check_is_fitted(self)
        config = self._config()
        X = self._counts(X, reset=False)
        posterior = _flat_posterior(len(X), config)
        for _ in range(10):
            posterior, *_ = sweep(X, posterior, self.weights_, self.local_topics_, self.global_topics_, config)
        return posterior.resp_NJ

    def _counts(self, X: Any, reset: bool) -> Array:
        X = validate_data(self, X, dtype=np.float64, reset=reset)
        negative = X < 0
        if negative.any():
            row, column = np.argwhere(negative)[0]
            raise ValueError(f"Negative values in data passed to ClusterTopics: row {row}, column {column} is "
                             f"{X[row, column]}; word counts are not negative")
        return X


def _fit_once(X: Array, config: Config, rng: np.random.RandomState) -> Run[State]:
    """One start, two iterations in which topics form within its clusters, and the ascent from there."""
    state = _start(X, config, rng)
    first_bounds = []
    for _ in range(min(FORMING, config.max_iter)):
        state, bound = _iterate(X, state, config, keep_clusters=True)
        first_bounds.append(bound)
    run = ascend(
        lambda now: _iterate(X, now, config),
        state,
        tol=config.tol,
        max_iter=config.max_iter - len(first_bounds),
        relative=True,
        ahead=True,
    )
    run.bounds = run.bounds or first_bounds
    return run


def _start(X: Array, config: Config, rng: np.random.RandomState) -> State:
    """Clusters by k-means or chance, and the words of each, disturbed, as its topics."""
    J, V = config.n_clusters, X.shape[1]
    labels = rng.permutation(len(X)) % J
    if config.init == "kmeans":
        total_N1 = np.maximum(X.sum(1, keepdims=True), 1)
        kmeans = KMeans(J, n_init=1, random_state=rng.randint(2**31))
        labels = kmeans.fit_predict(np.sqrt(X / total_N1))
    resp_NJ = np.eye(J)[labels]
    words_JV = resp_NJ.T @ X
    noise_JLV = X.mean() * rng.gamma(1.0, size=(J, config.n_local, V))
    noise_GV = X.mean() * J * rng.gamma(1.0, size=(config.n_global, V))
    local_JLV = words_JV[:, None] + noise_JLV + config.topic_prior
    global_GV = X.sum(0) + noise_GV + config.topic_prior
    local_JLV = local_JLV * rng.gamma(2.0, size=local_JLV.shape)
    global_GV = global_GV * rng.gamma(2.0, size=global_GV.shape)
    topics = Topics(resp_NJ.mean(0), _shares(local_JLV), _shares(global_GV))
    posterior = _flat_posterior(len(X), config)
    posterior.resp_NJ = resp_NJ
    return State(posterior, topics)


def _iterate(X: Array, state: State, config: Config, keep_clusters: bool = False) -> tuple[State, float]:
    """Sweeps over the documents, then topics from their expected counts; the bound between them, prior included."""
    posterior, topics = state
    for _ in range(config.inner_iter):
        posterior, bound, local_counts_JLV, global_counts_GV = sweep(
            X, posterior, *topics, config, keep_clusters=keep_clusters)
    log_topics = np.log(topics.local_JLV).sum() + np.log(topics.global_GV).sum()
    bound = bound + config.topic_prior * float(log_topics)
    local_JLV = _shares(local_counts_JLV + config.topic_prior)
    global_GV = _shares(global_counts_GV + config.topic_prior)
    new = Topics(posterior.resp_NJ.mean(0), local_JLV, global_GV)
    return State(posterior, new), bound


def _shares(counts: Array) -> Array:
    return counts / counts.sum(-1, keepdims=True)


def _flat_posterior(count: int, config: Config) -> Posterior:
    J = config.n_clusters
    return Posterior(
        np.full((count, J), 1 / J),
        np.ones((count, J, config.n_local)),
        np.ones((count, config.n_global)),
        np.ones((count, 2)),
    )


def sweep(X: Array, old: Posterior, weights_J: Array, local_JLV: Array, global_GV: Array, config: Config,
          keep_clusters: bool = False) -> tuple[Posterior, float, Array, Array]:
    """One pass over the documents' posteriors: the new one, the bound at it, and expected counts of topics' words.

    `keep_clusters` keeps the clusters' probabilities, so that topics of a start can form first.
    """
    log_share_N2 = log_mean(old.share_N2)
    local_NJL = np.exp(log_mean(old.local_NJL) + log_share_N2[:, None, :1])
    global_NG = np.exp(log_mean(old.global_NG) + log_share_N2[:, 1:])
    z_JNV = _word_weights(local_NJL, local_JLV) + global_NG @ global_GV
    log_words_NJ = np.einsum("nv,jnv->nj", X, log_positive(z_JNV))
    log_joint_NJ = log_positive(weights_J) + log_words_NJ
    resp_NJ = old.resp_NJ if keep_clusters else softmax(log_joint_NJ, axis=1)
    expected_NJ = resp_NJ * (log_joint_NJ - log_positive(resp_NJ))
    bound = float(expected_NJ.sum()) - _prior_kl(old, config)
    ratio_JNV = resp_NJ.T[:, :, None] * X / np.maximum(z_JNV, TINY)
    ratio_NV = ratio_JNV.sum(0)
    local_counts_JLV = []
    local_counts_NJL = np.empty_like(local_NJL)
    for j, cluster_NV in enumerate(ratio_JNV):
        local_NL = local_NJL[:, j]
        local_counts_NJL[:, j] = local_NL * (cluster_NV @ local_JLV[j].T)
        local_counts_JLV.append(local_JLV[j] * (local_NL.T @ cluster_NV))
    global_counts_NG = global_NG * (ratio_NV @ global_GV.T)
    global_counts_GV = global_GV * (global_NG.T @ ratio_NV)
    new = _posterior(resp_NJ, local_counts_NJL, global_counts_NG, config)
    return new, bound, np.stack(local_counts_JLV), global_counts_GV


def _word_weights(local_NJL: Array, local_JLV: Array) -> Array:
    """What the clusters' own topics give every word of every document, (J, N, V)."""
    clusters = zip(local_NJL.swapaxes(0, 1), local_JLV)
    return np.stack([local_NL @ topics_LV for local_NL, topics_LV in clusters])


def _prior_kl(posterior: Posterior, config: Config) -> float:
    """Divergence of the documents' mixing posteriors from their priors, in nats."""
    of_local = dirichlet_kl(posterior.local_NJL, config.local_prior)
    of_global = dirichlet_kl(posterior.global_NG, config.global_prior)
    return of_local + of_global + beta_kl(posterior.share_N2, config.share_prior)


def _posterior(resp_NJ: Array, local_counts_NJL: Array, global_counts_NG: Array, config: Config) -> Posterior:
    """From expected counts and the priors' pseudo-counts."""
    local_N = local_counts_NJL.sum((1, 2))
    global_N = global_counts_NG.sum(1)
    counts_N2 = np.column_stack([local_N, global_N])
    return Posterior(
        resp_NJ,
        local_counts_NJL + config.local_prior,
        global_counts_NG + config.global_prior,
        counts_N2 + np.array(config.share_prior),
    )


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twenty documents of two vocabularies and two words that both use."""
    first = [4.0, 4.0, 0.1, 0.1, 3.0, 3.0]
    second = [0.1, 0.1, 4.0, 4.0, 3.0, 3.0]
    rate_2V = 5 * torch.tensor([first, second])
    counts_NV = torch.poisson(rate_2V.repeat(10, 1), generator=generator)
    return {
        "estimator": ClusterTopics(n_clusters=2, n_local=1, n_global=1, random_state=0),
        "X": counts_NV.numpy(),
    }
