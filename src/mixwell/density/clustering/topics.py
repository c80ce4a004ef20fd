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
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import betaln, digamma, gammaln, softmax
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from mixwell.core.method import method
from mixwell.density._gaussian import Array, log_positive
from mixwell.density._options import Configured


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the multi-grain clustering topic model."""

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
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        positive = (self.local_prior, self.global_prior, *self.share_prior, self.topic_prior)
        if min(positive) <= 0 or self.tol < 0:
            raise ValueError(f"local_prior, global_prior, share_prior, topic_prior are {positive}; expected above 0")
        if self.init not in ("kmeans", "random"):
            raise ValueError(f"init is {self.init!r}; expected 'kmeans' or 'random'")


@dataclass
class Posterior:
    """What is believed of N documents."""

    resp_NJ: Array
    local_NJL: Array  # Dirichlet parameters
    global_NG: Array
    share_N2: Array  # Beta parameters of the local share


def log_mean(parameters: Array) -> Array:
    """E[log theta] under Dirichlets along the last axis."""
    return digamma(parameters) - digamma(parameters.sum(-1, keepdims=True))


def dirichlet_kl(parameters: Array, prior: float) -> float:
    """Sum of KL(Dir(parameters) | Dir(prior, prior, ...)) over all but the last axis."""
    K = parameters.shape[-1]
    constant = gammaln(K * prior) - K * gammaln(prior)
    each = gammaln(parameters.sum(-1)) - gammaln(parameters).sum(-1) - constant \
        + ((parameters - prior) * log_mean(parameters)).sum(-1)
    return float(each.sum())


def beta_kl(parameters: Array, prior: tuple[float, float]) -> float:
    """Sum of KL(Beta(parameters) | Beta(prior)) over rows."""
    each = betaln(*prior) - betaln(parameters[:, 0], parameters[:, 1]) \
        + ((parameters - np.array(prior)) * log_mean(parameters)).sum(-1)
    return float(each.sum())


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
        """Fit counts X (N, V); returns self."""
        config = self._config()
        X = self._counts(X, reset=True)
        if len(X) < config.n_clusters:
            raise ValueError(f"{len(X)} documents for {config.n_clusters} clusters; expected at least as many")
        rng, best = check_random_state(config.random_state), None
        for _ in range(config.n_init):
            found = self._run(X, config, rng)
            if best is None or found[-1][-1] > best[-1][-1]:
                best = found
        assert best is not None
        posterior, self.weights_, self.local_topics_, self.global_topics_, self.lower_bounds_ = best
        self.resp_, self.labels_ = posterior.resp_NJ, posterior.resp_NJ.argmax(1)
        self.local_shares_ = posterior.share_N2[:, 0] / posterior.share_N2.sum(1)
        self.n_iter_ = len(self.lower_bounds_)
        return self

    def predict(self, X: Any) -> Array:
        """The most probable cluster of every document (N,)."""
        return self.predict_proba(X).argmax(1)

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the clusters (N, J)."""
        check_is_fitted(self)
        X, config = self._counts(X, reset=False), self._config()
        posterior = _flat_posterior(len(X), config)
        for _ in range(10):
            posterior, *_ = sweep(X, posterior, self.weights_, self.local_topics_, self.global_topics_, config)
        return posterior.resp_NJ

    def _counts(self, X: Any, reset: bool) -> Array:
        X = validate_data(self, X, dtype=np.float64, reset=reset)
        if (X < 0).any():
            row, column = np.argwhere(X < 0)[0]
            raise ValueError(f"Negative values in data passed to ClusterTopics: row {row}, column {column} is "
                             f"{X[row, column]}; word counts are not negative")
        return X

    def _run(self, X: Array, config: Config,
             rng: np.random.RandomState) -> tuple[Posterior, Array, Array, Array, list[float]]:
        J, V = config.n_clusters, X.shape[1]
        labels = rng.permutation(len(X)) % J
        if config.init == "kmeans":
            rows = np.sqrt(X / np.maximum(X.sum(1, keepdims=True), 1))
            labels = KMeans(J, n_init=1, random_state=rng.randint(2**31)).fit_predict(rows)
        resp_NJ = np.eye(J)[labels]
        weights_J = resp_NJ.mean(0)
        local_JLV = (resp_NJ.T @ X)[:, None] + X.mean() * rng.gamma(1.0, size=(J, config.n_local, V))
        global_GV = X.sum(0) + X.mean() * J * rng.gamma(1.0, size=(config.n_global, V))
        local_JLV, global_GV = ((t + config.topic_prior) * rng.gamma(2.0, size=t.shape) for t in (local_JLV, global_GV))
        local_JLV, global_GV = (t / t.sum(-1, keepdims=True) for t in (local_JLV, global_GV))
        posterior, bounds = _flat_posterior(len(X), config), []
        posterior.resp_NJ = resp_NJ
        for iteration in range(config.max_iter):
            for _ in range(config.inner_iter):
                posterior, bound, local_c, global_c = sweep(X, posterior, weights_J, local_JLV, global_GV, config,
                                                            hold=iteration < 2)
            bounds.append(bound + config.topic_prior * float(np.log(local_JLV).sum() + np.log(global_GV).sum()))
            weights_J = posterior.resp_NJ.mean(0)
            local_JLV, global_GV = (t + config.topic_prior for t in (local_c, global_c))
            local_JLV, global_GV = (t / t.sum(-1, keepdims=True) for t in (local_JLV, global_GV))
            if iteration > 2 and bounds[-1] - bounds[-2] < config.tol * abs(bounds[-1]):
                break
        return posterior, weights_J, local_JLV, global_GV, bounds[2:] or bounds


def _flat_posterior(count: int, config: Config) -> Posterior:
    J = config.n_clusters
    return Posterior(np.full((count, J), 1 / J), np.ones((count, J, config.n_local)),
                     np.ones((count, config.n_global)), np.ones((count, 2)))


def sweep(X: Array, old: Posterior, weights_J: Array, local_JLV: Array, global_GV: Array, config: Config,
          hold: bool = False) -> tuple[Posterior, float, Array, Array]:
    """One pass over the documents' posteriors: the new one, the bound at it, and expected counts of topics' words.

    `hold` keeps the clusters' probabilities, so that topics of a start can form first.
    """
    log_share_N2 = log_mean(old.share_N2)
    local_NJL = np.exp(log_mean(old.local_NJL) + log_share_N2[:, None, :1])
    global_NG = np.exp(log_mean(old.global_NG) + log_share_N2[:, 1:])
    shared_NV = global_NG @ global_GV
    z_JNV = np.stack([local_NJL[:, j] @ local_JLV[j] + shared_NV for j in range(len(weights_J))])
    log_z_NJ = np.einsum("nv,jnv->nj", X, log_positive(z_JNV))
    log_weights_J = log_positive(weights_J)
    resp_NJ = old.resp_NJ if hold else softmax(log_weights_J + log_z_NJ, axis=1)
    bound = float((resp_NJ * (log_weights_J + log_z_NJ - log_positive(resp_NJ))).sum())
    bound -= dirichlet_kl(old.local_NJL, config.local_prior) + dirichlet_kl(old.global_NG, config.global_prior) \
        + beta_kl(old.share_N2, config.share_prior)
    ratio_JNV = resp_NJ.T[:, :, None] * X / np.maximum(z_JNV, 1e-300)
    local_counts_NJL = np.stack([local_NJL[:, j] * (r @ local_JLV[j].T) for j, r in enumerate(ratio_JNV)], 1)
    global_counts_NG = global_NG * (ratio_JNV.sum(0) @ global_GV.T)
    share_N2 = np.column_stack([local_counts_NJL.sum((1, 2)), global_counts_NG.sum(1)]) + np.array(config.share_prior)
    new = Posterior(resp_NJ, local_counts_NJL + config.local_prior, global_counts_NG + config.global_prior, share_N2)
    local_c = np.stack([local_JLV[j] * (local_NJL[:, j].T @ r) for j, r in enumerate(ratio_JNV)])
    return new, bound, local_c, global_GV * (global_NG.T @ ratio_JNV.sum(0))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twenty documents of two vocabularies and two words that both use."""
    share = torch.tensor([[4.0, 4.0, 0.1, 0.1, 3.0, 3.0], [0.1, 0.1, 4.0, 4.0, 3.0, 3.0]]).repeat(10, 1)
    return {"estimator": ClusterTopics(n_clusters=2, n_local=1, n_global=1, random_state=0),
            "X": torch.poisson(5 * share, generator=generator).numpy()}
