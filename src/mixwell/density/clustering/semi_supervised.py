"""Semi-supervised Gaussian mixture with splits and merges: new classes beside labelled ones, their number unknown.

**Equation:** EM of a Gaussian mixture whose labelled rows are clamped to their class's component. Between steps a
component C with 2-means parts C1, C2 splits with probability min(1, H), H = a G(N1) h(C1) G(N2) h(C2) / (G(N) h(C)),
and a component merges with its nearest neighbour with probability min(1, 1 / H) of their union; G is the gamma
function, h the marginal likelihood under a normal-inverse-Wishart prior, a the concentration. Means serve as prototypes
of L = -mean_n log softmax_k(z_n . m_k / tau) at n's component, for learning features z between fits.

**Shapes:** X (N, D), y (N,) with -1 where unlabelled; `means_` (K, D), `covariances_` (K, D, D), and
`component_labels_` (K,): the class of labelled components, numbers beyond the classes for new ones.

**Reference:** Zhao, Wen, Han (2023), Learning Semi-supervised Gaussian Mixture Models for Generalized Category
Discovery, ICCV, arXiv:2305.06144, sections 3.2 to 3.4.

**Differs:** written from memory of the paper. Features are given; the contrastive loss is a function beside the
estimator, not a loop with a network in it. A labelled component that splits keeps its labelled rows in one part.
Moves are weighed with hard assignments; covariances are posterior modes.

**Fails when:** classes are far from Gaussian (they split) or D is large against the rows (reduce it first).

**Cost:** O(N K D^2) a step, O(K (N D^2 + D^3)) a round of moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import gammaln, logsumexp, multigammaln, softmax
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import Array, log_positive, log_prob
from mixwell.density._options import Configured


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the semi-supervised mixture; `ValueError` for one out of range."""

    n_components: int = 10  # to begin with, or the number of labelled classes where that is larger
    rounds: int = 20  # of EM steps, splits and merges
    em_steps: int = 5  # of every round, and 5 times as many at the end
    concentration: float = 1.0  # a: larger splits more
    prior_scale: float = 0.3  # prior standard deviation within a component, as a share of the columns' own
    prior_rows: float = 5.0  # weight of the prior covariance, in rows beyond D + 1
    mean_rows: float = 0.01  # weight of the prior mean, the Wishart's kappa, in rows
    random_state: Any = None

    def __post_init__(self) -> None:
        for name, least in {"n_components": 1, "rounds": 0, "em_steps": 1}.items():
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")
        for name in ("concentration", "prior_scale", "prior_rows", "mean_rows"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} is {value}; expected above 0")


@dataclass(frozen=True)
class Prior:
    """Normal-inverse-Wishart."""

    mean_D: Array
    kappa: float
    nu: float
    psi_DD: Array

    def updated(self, x_ND: Array, weights_N: Array | None = None) -> Prior:
        """The posterior after (weighted) rows."""
        w_N = np.ones(len(x_ND)) if weights_N is None else weights_N
        total = w_N.sum()
        kappa = self.kappa + total
        centre_D = w_N @ x_ND / max(total, 1e-300)
        gap_ND = x_ND - centre_D
        shift_D = centre_D - self.mean_D
        within_DD = gap_ND.T @ (w_N[:, None] * gap_ND)
        between = self.kappa * total / kappa
        psi_DD = self.psi_DD + within_DD + between * np.outer(shift_D, shift_D)
        mean_D = (self.kappa * self.mean_D + total * centre_D) / kappa
        return Prior(mean_D, kappa, self.nu + total, psi_DD)

    def mode_DD(self) -> Array:
        """The likeliest covariance (D, D)."""
        rows = self.nu + len(self.mean_D) + 2
        return self.psi_DD / rows

    def log_volume(self) -> float:
        """Log of the normaliser, less what cancels between prior and posterior."""
        D = len(self.mean_D)
        half_nu = self.nu / 2
        _, log_det = np.linalg.slogdet(self.psi_DD)
        spread = half_nu * log_det
        of_covariance = multigammaln(half_nu, D) - spread
        of_mean = D / 2 * math.log(self.kappa)
        return float(of_covariance - of_mean)


def log_marginal(x_ND: Array, prior: Prior) -> float:
    """log h(C): the rows' marginal likelihood, in nats."""
    posterior = prior.updated(x_ND)
    gain = posterior.log_volume() - prior.log_volume()
    return gain - x_ND.size / 2 * math.log(math.pi)


def log_split_ratio(first_ND: Array, second_ND: Array, prior: Prior, concentration: float) -> float:
    """log H of splitting the union of two sets of rows; its negative is the merge's."""
    first = gammaln(len(first_ND)) + log_marginal(first_ND, prior)
    second = gammaln(len(second_ND)) + log_marginal(second_ND, prior)
    both_ND = np.concatenate([first_ND, second_ND])
    split = math.log(concentration) + (first + second)
    return float(split - gammaln(len(both_ND)) - log_marginal(both_ND, prior))


def prototype_loss(z_ND: Tensor, prototypes_KD: Tensor, labels_N: Tensor, temperature: float = 0.1) -> Tensor:
    """Prototypical contrastive loss (a scalar) of features and component means, both scaled to length one.

    `ValueError` for a temperature that is not above zero.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; expected above 0")
    z_ND = torch.nn.functional.normalize(z_ND, dim=-1)
    prototypes_KD = torch.nn.functional.normalize(prototypes_KD, dim=-1)
    cosine_NK = z_ND @ prototypes_KD.T
    logits_NK = cosine_NK / temperature
    return torch.nn.functional.cross_entropy(logits_NK, labels_N)


@method(
    title="Semi-supervised split-and-merge mixture",
    paper="Learning Semi-supervised Gaussian Mixture Models for Generalized Category Discovery",
    year=2023,
    tags={"estimator", "density", "responsibilities", "relabel", "sklearn"},
)
class SemiSupervisedMixture(ClusterMixin, Configured, BaseEstimator, config=Config):
    """Mixture that knows some labels and finds the other classes; see the module's card.

    Fitted besides: `weights_` (K,), `labels_` (N,) in the numbering of `component_labels_`, `history_` of kept moves.
    """

    def fit(self, X: Any, y: Any = None) -> SemiSupervisedMixture:
        """Fit rows X (N, D) with labels y (N,), -1 (or no y) where there is none; returns self.

        `ValueError` for labels that are not whole numbers from -1, more components than rows, or options out of range.
        """
        config = self._config()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        y = _labels(y, len(X))
        labelled_N = y >= 0
        self.classes_ = np.unique(y[labelled_N])
        if config.n_components > len(X):
            raise ValueError(f"n_components is {config.n_components}; expected at most {len(X)}, the rows")
        rng = check_random_state(config.random_state)
        self._prior = _prior(X, config)
        self._known_N = np.where(labelled_N, np.searchsorted(self.classes_, y), -1)  # component of labelled rows
        self.history_: list[str] = []
        resp_NK = self._start(X, config, rng)
        for _ in range(config.rounds):
            resp_NK = self._em(X, resp_NK, config.em_steps)
            resp_NK = self._split(X, resp_NK, config, rng)
            resp_NK = self._merge(X, resp_NK, config, rng)
        resp_NK = self._em(X, resp_NK, 5 * config.em_steps)
        self.n_components_ = len(self.weights_)
        self.component_labels_ = self._numbered()
        self.labels_ = self.component_labels_[resp_NK.argmax(1)]
        return self

    def _numbered(self) -> Array:
        """Labels (K,) of the components: the known classes, then numbers beyond them."""
        new = len(self.weights_) - len(self.classes_)
        first = 0
        if len(self.classes_):
            first = int(self.classes_.max()) + 1
        return np.r_[self.classes_, first + np.arange(new)].astype(int)

    def _start(self, X: Array, config: Config, rng: np.random.RandomState) -> Array:
        """Clamped responsibilities around class means and k-means++ centres."""
        means = [X[self._known_N == k].mean(0) for k in range(len(self.classes_))]
        free_N = self._known_N < 0
        free = X[free_N] if free_N.any() else X
        spare = min(config.n_components - len(means), len(free))
        if spare > 0:
            kmeans = KMeans(spare, n_init=1, random_state=rng.randint(2**31))
            means.extend(kmeans.fit(free).cluster_centers_)
        gap_NKD = X[:, None] - np.array(means)
        distance_NK = (gap_NKD**2).sum(2)
        nearest_N = distance_NK.argmin(1)
        return self._clamped(np.eye(len(means))[nearest_N])

    def _clamped(self, resp_NK: Array) -> Array:
        known = self._known_N >= 0
        resp_NK[known] = np.eye(resp_NK.shape[1])[self._known_N[known]]
        return resp_NK

    def _em(self, X: Array, resp_NK: Array, steps: int) -> Array:
        """M and E steps; components of new classes that lost their rows leave."""
        for _ in range(steps):
            known_K = np.arange(resp_NK.shape[1]) < len(self.classes_)
            alive_K = known_K | (resp_NK.sum(0) > 1e-3)
            resp_NK = resp_NK[:, alive_K]
            self.weights_ = resp_NK.sum(0) / resp_NK.sum()
            posteriors = [self._prior.updated(X, resp_N) for resp_N in resp_NK.T]
            self.means_ = np.array([p.mean_D for p in posteriors])
            self.covariances_ = np.array([p.mode_DD() for p in posteriors])
            resp_NK = self._clamped(softmax(self._log_joint(X), axis=1))
        return resp_NK

    def _log_joint(self, X: Array) -> Array:
        found = []
        for mean_D, covariance_DD in zip(self.means_, self.covariances_):
            log_N = log_prob(X - mean_D, covariance_DD)
            found.append(log_N)
        log_weights_K = log_positive(self.weights_)
        return log_weights_K + np.stack(found, 1)

    def _split(self, X: Array, resp_NK: Array, config: Config, rng: np.random.RandomState) -> Array:
        """Every component in two by 2-means, where the ratio of marginal likelihoods accepts it."""
        nearest_N = resp_NK.argmax(1)
        added = []
        for k in range(resp_NK.shape[1]):
            rows = np.flatnonzero(nearest_N == k)
            if len(rows) < 4:
                continue
            second = self._halved(X, rows, k, rng)
            if not 0 < second.sum() < len(rows):
                continue
            stay, leave = rows[~second], rows[second]
            ratio = log_split_ratio(X[stay], X[leave], self._prior, config.concentration)
            if math.log(rng.uniform()) < ratio:
                column_N = np.zeros(len(X))
                column_N[leave] = resp_NK[leave, k]
                resp_NK[leave, k] = 0
                added.append(column_N)
                self.history_.append("split")
        return np.column_stack([resp_NK, *added])

    def _halved(self, X: Array, rows: Array, k: int, rng: np.random.RandomState) -> Array:
        """Which of a component's rows would leave it; labelled rows of the component stay together."""
        kmeans = KMeans(2, n_init=1, random_state=rng.randint(2**31))
        second = kmeans.fit_predict(X[rows]).astype(bool)
        known = self._known_N[rows] == k
        if known.any():
            second ^= second[known].mean() > 0.5
            second[known] = False
        return second

    def _merge(self, X: Array, resp_NK: Array, config: Config, rng: np.random.RandomState) -> Array:
        """Every component with the nearest, unless both are known classes, where the ratio accepts it."""
        alive = list(range(resp_NK.shape[1]))
        known = len(self.classes_)
        for k in rng.permutation(len(alive)):
            if k not in alive:
                continue
            partners = [j for j in alive if j != k and max(j, k) >= known]
            nearest_N = resp_NK.argmax(1)
            mine = X[nearest_N == k]
            theirs = {j: X[nearest_N == j] for j in partners if (nearest_N == j).any()}
            if not len(mine) or not theirs:
                continue
            j = _closest(mine, theirs)
            ratio = log_split_ratio(mine, theirs[j], self._prior, config.concentration)
            if math.log(rng.uniform()) < -ratio:
                keep, gone = min(j, k), max(j, k)
                resp_NK[:, keep] += resp_NK[:, gone]
                resp_NK[:, gone] = 0
                alive.remove(gone)
                self.history_.append("merge")
        return resp_NK[:, alive]

    def predict_proba(self, X: Any) -> Array:
        """Responsibilities (N, K), columns as in `component_labels_`; an error before `fit` or for other columns."""
        check_is_fitted(self, "means_")
        x_ND = validate_data(self, X, dtype=np.float64, reset=False)
        return softmax(self._log_joint(x_ND), axis=1)

    def predict(self, X: Any) -> Array:
        """Labels (N,): a known class, or the number of a new one."""
        columns = self.predict_proba(X).argmax(1)
        return self.component_labels_[columns]

    def score_samples(self, X: Any) -> Array:
        """Log density of every row (N,), in nats; an error before `fit`."""
        check_is_fitted(self, "means_")
        x_ND = validate_data(self, X, dtype=np.float64, reset=False)
        return logsumexp(self._log_joint(x_ND), axis=1)


def _prior(X: Array, config: Config) -> Prior:
    """Around the mean of all rows, with a share of the columns' own variances."""
    column_variance_D = np.maximum(X.var(0), 1e-12)
    variance_D = column_variance_D * config.prior_scale**2
    rows = config.prior_rows
    return Prior(
        mean_D=X.mean(0),
        kappa=config.mean_rows,
        nu=X.shape[1] + 1 + rows,
        psi_DD=np.diag(variance_D * rows),
    )


def _closest(mine: Array, theirs: dict[int, Array]) -> int:
    """The set of rows whose mean is nearest."""
    centre_D = mine.mean(0)

    def square(j: int) -> float:
        gap_D = theirs[j].mean(0) - centre_D
        return float((gap_D**2).sum())

    return min(theirs, key=square)


def _labels(y: Any, count: int) -> Array:
    """Whole numbers (N,), -1 where there is no label."""
    if y is None:
        return np.full(count, -1)
    try:
        values = np.asarray(y).astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError("y holds values that are not numbers; expected whole numbers, -1 where there is no label") \
            from None
    whole = (values == np.floor(values)).all()
    if values.shape != (count,) or not whole or values.min() < -1:
        raise ValueError(f"y has shape {values.shape}; expected ({count},) whole numbers, -1 where there is no label")
    return values.astype(int)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three groups in the plane; a third of the first has a label."""
    centre_KD = torch.tensor([[-6.0, 0.0], [0.0, 0.0], [6.0, 2.0]], dtype=torch.float64)
    noise_ND = torch.randn(90, 2, generator=generator, dtype=torch.float64)
    x_ND = centre_KD.repeat_interleave(30, 0) + noise_ND
    y_N = torch.full((90,), -1)
    y_N[:10] = 0
    estimator = SemiSupervisedMixture(n_components=2, rounds=5, random_state=0)
    return {"estimator": estimator, "X": x_ND.numpy(), "y": y_N.numpy()}
