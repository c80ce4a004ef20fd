"""Mixture of any components that take weighted rows: each gives log densities and fits itself to weighted rows.

**Equation:** p(x) = sum_k w_k p_k(x). E step: r_nk = w_k p_k(x_n) / p(x_n). M step: w_k = mean of r_nk, and component k
is fitted to all rows with weights r_nk.

**Shapes:** X (N, D); `weights_` (K,), `components_` a list of K fitted components.

**Reference:** Dempster, Laird, Rubin (1977), Maximum Likelihood from Incomplete Data via the EM Algorithm.

**Differs:** the likelihood rises at every step only where a component's fit is (weighted) maximum likelihood; a fall is
reported by a warning.

**Fails when:** a component's fit ignores the weights; a row has no density under any component (`ValueError`).

**Cost:** K fits and K evaluations of all rows a step; memory O(N K).
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, get_tags
from sklearn.utils.validation import check_is_fitted, validate_data

from mixwell.core.method import method
from mixwell.density._ascent import Run, highest
from mixwell.density._gaussian import log_positive
from mixwell.density._options import Configured
from mixwell.density.mixtures.em.rows import imputed
from mixwell.density.mixtures.gaussian import GaussianMixture


@dataclass(frozen=True)
class Config:
    """Options of the mixture of any components; `ValueError` for one out of range."""

    components: Sequence[Any] = ()
    _: KW_ONLY
    tol: float = 1e-3  # stop when a step gains less, in nats a row
    max_iter: int = 100  # 1 or more
    n_init: int = 1  # starts by k-means; the best is kept
    init: Literal["kmeans", "given"] = "kmeans"  # a cluster each, in the order that fits best; or as they are, fitted
    random_state: Any = None  # of starts and draws

    def __post_init__(self) -> None:
        if len(self.components) == 0:
            raise ValueError("components is empty; expected objects with log_prob and fit.")
        if self.init not in ("kmeans", "given"):
            raise ValueError(f"init={self.init!r}; expected 'kmeans' or 'given'.")
        if self.n_init < 1 or self.max_iter < 1 or self.tol < 0:
            raise ValueError(f"n_init={self.n_init}, max_iter={self.max_iter}, tol={self.tol}; expected at least 1, 1 "
                             "and 0.")
        for component in self.components:
            _check_component(component)


def _check_component(component: Any) -> None:
    scores = hasattr(component, "log_prob") or hasattr(component, "score_samples")
    if not scores or not hasattr(component, "fit"):
        raise ValueError(f"{component!r} has no log_prob (or score_samples) or no fit; a component needs both.")


class Fitted(NamedTuple):
    """Weights and components, which a step of EM fits in their place."""

    weights_K: np.ndarray
    parts: list[Any]


@method(title="Mixture of any components", year=1977, tags={"estimator", "mixture"})
class Mixture(DensityMixin, Configured, BaseEstimator, config=Config):
    """Mixture of given components, which may be of different kinds.

    components: objects with `log_prob(X) -> (N,)` (or scikit-learn's `score_samples`) and `fit(X, sample_weight=...)`;
    they are copied, the given ones stay as they are. A component with `sample(n)` makes the mixture sample. X may hold
    NaN where every component's tags allow it. Other options: see `Config`.
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Mixture:
        """EM from `n_init` starts; keeps the best. Returns self.

        Raises a `ValueError` where an option, X or the weights are none that can be fitted to, or a row has no density
        under any component.
        """
        self._config()
        least = max(2, len(self.components))
        X = self._validated(X, ensure_min_samples=least)
        weight_N = _checked_weights(sample_weight, len(X))
        rng = check_random_state(self.random_state)
        run = highest([self._climb(X, weight_N, rng) for _ in range(self.n_init)])
        self.weights_, self.components_ = run.state
        self.converged_ = run.converged
        self.lower_bounds_ = run.bounds
        self.lower_bound_ = run.bounds[-1]
        self.n_iter_ = len(run.bounds)
        if not self.converged_:
            warnings.warn("Best performing initialization did not converge. Try a larger max_iter or tol.",
                          ConvergenceWarning, stacklevel=2)
        return self

    def _validated(self, X: Any, **how: Any) -> np.ndarray:
        finite: Any = "allow-nan" if self._takes_nan() else True
        return validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite=finite, **how)

    def _takes_nan(self) -> bool:
        """Whether every component says that it takes missing values."""
        if len(self.components) == 0:
            return False
        return all(isinstance(part, BaseEstimator) and _allows_nan(part) for part in self.components)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._takes_nan()
        return tags

    def _climb(self, X: np.ndarray, weight_N: np.ndarray, rng: np.random.RandomState) -> Run[Fitted]:
        """EM from one start. A step may fall, which the shared ascent would take for an end."""
        run = Run(self._start(X, weight_N, rng))
        for _ in range(self.max_iter):
            joint_NK = _joint(X, *run.state)
            log_density_N, resp_NK = _posterior(joint_NK)
            _refuse_unreached(log_density_N, weight_N)
            bound = _mean(log_density_N, weight_N)
            gain = bound - run.bounds[-1] if run.bounds else math.inf
            _warn_of_fall(gain, bound)
            run.bounds.append(bound)
            run.converged = abs(gain) < self.tol
            if run.converged:
                break
            run.state = _maximise(X, resp_NK * weight_N[:, None], weight_N.sum(), run.state.parts)
        return run

    def _start(self, X: np.ndarray, weight_N: np.ndarray, rng: np.random.RandomState) -> Fitted:
        """Copies of the components, as they are or fitted to a cluster each."""
        K = len(self.components)
        parts = [copy.deepcopy(component) for component in self.components]
        if self.init == "given":
            return Fitted(np.full(K, 1 / K), parts)
        points_ND = imputed(torch.from_numpy(np.array(X))).numpy()
        clusters = KMeans(K, n_init=1, random_state=rng).fit(points_ND, sample_weight=weight_N)
        hard_NK = np.eye(K)[clusters.labels_]
        soft_NK = 0.9 * hard_NK + 0.1 / K  # every component sees every row a little
        kinds = {type(part) for part in parts}
        if len(kinds) > 1:
            order_K = _assign(X, weight_N, parts, soft_NK)
            soft_NK = soft_NK[:, order_K]
        for part, r_N in zip(parts, soft_NK.T):
            part.fit(X, sample_weight=r_N * weight_N)
        weights_K = np.average(soft_NK, axis=0, weights=weight_N)
        return Fitted(weights_K, parts)

    def score_samples(self, X: Any) -> np.ndarray:
        """Log density of every row (N,), in nats; an error before `fit`."""
        return _posterior(self._all(X))[0]

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density, in nats."""
        return float(self.score_samples(X).mean())

    def bic(self, X: Any) -> float:
        """Bayesian information criterion on X; lower is better. Raises as `_n_parameters`."""
        log_density_N = self.score_samples(X)
        penalty = self._n_parameters() * math.log(len(log_density_N))
        return float(penalty - 2 * log_density_N.sum())

    def aic(self, X: Any) -> float:
        """Akaike information criterion on X; lower is better. Raises as `_n_parameters`."""
        log_density_N = self.score_samples(X)
        penalty = 2 * self._n_parameters()
        return float(penalty - 2 * log_density_N.sum())

    def _n_parameters(self) -> int:
        """Free numbers: those of the components, and K - 1 weights.

        A component says its own by `_n_parameters()`, as the mixtures of this library do, or by an attribute
        `n_parameters`; a `ValueError` where one does not. An error before `fit`.
        """
        check_is_fitted(self)
        weights = len(self.weights_) - 1
        return weights + sum(map(_numbers_of, self.components_))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Responsibilities (N, K); an error before `fit`."""
        return _posterior(self._all(X))[1]

    def predict(self, X: Any) -> np.ndarray:
        """The most probable component of every row (N,); an error before `fit`."""
        return self._all(X).argmax(1)

    def _all(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        return _joint(X, self.weights_, self.components_)

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Rows drawn from the components' own `sample(n)`, and their components.

        The mixture's `random_state` decides all draws of components that have a `random_state`, or whose `sample`
        takes one. Raises a `ValueError` where fewer than one row is asked for.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples={n_samples}; expected at least 1.")
        rng = check_random_state(self.random_state)
        counts_K = rng.multinomial(n_samples, self.weights_)
        K = len(counts_K)
        seeds_K = rng.randint(np.iinfo(np.int32).max, size=K)
        rows = []
        for part, count, seed in zip(self.components_, counts_K, seeds_K):
            if count:
                drawn = _draw(part, int(count), int(seed))
                rows.append(drawn[0] if isinstance(drawn, tuple) else drawn)
        labels_N = np.repeat(np.arange(K), counts_K)
        return np.vstack([np.asarray(part) for part in rows]), labels_N


def _numbers_of(part: Any) -> int:
    if hasattr(part, "_n_parameters"):
        return part._n_parameters()
    if hasattr(part, "n_parameters"):
        return int(part.n_parameters)
    raise ValueError(f"{part!r} does not say how many parameters it has; give it an attribute n_parameters.")


def _allows_nan(part: BaseEstimator) -> bool:
    return bool(get_tags(part).input_tags.allow_nan)


def _checked_weights(sample_weight: Any, rows: int) -> np.ndarray:
    """Weights (N,) of the rows, ones where none were given."""
    if sample_weight is None:
        return np.ones(rows)
    weight_N = np.asarray(sample_weight, float)
    if weight_N.shape != (rows,) or (weight_N < 0).any() or weight_N.sum() <= 0:
        raise ValueError(f"sample_weight must hold {rows} numbers, none negative, not all zero.")
    return weight_N


def _refuse_unreached(log_density_N: np.ndarray, weight_N: np.ndarray) -> None:
    nowhere_N = np.isneginf(log_density_N) & (weight_N > 0)
    if nowhere_N.any():
        row = int(np.flatnonzero(nowhere_N)[0])
        raise ValueError(f"row {row} has no density under any component; remove it or add a component that "
                         "reaches it.")


def _mean(log_density_N: np.ndarray, weight_N: np.ndarray) -> float:
    """Weighted mean over the rows that count; others may have no density."""
    counts_N = weight_N > 0
    total = log_density_N[counts_N] @ weight_N[counts_N]
    return float(total / weight_N.sum())


def _warn_of_fall(gain: float, bound: float) -> None:
    rounding = 1e-6 * max(1, abs(bound))
    if gain < -rounding:
        warnings.warn(f"the likelihood fell by {-gain:.3g}: a component's fit is not weighted maximum "
                      "likelihood.", UserWarning, stacklevel=5)


def _maximise(X: np.ndarray, resp_NK: np.ndarray, total: float, parts: list[Any]) -> Fitted:
    """Weights, and the components fitted to all rows with their weighted responsibilities."""
    mass_K = resp_NK.sum(0)
    for part, r_N in zip(parts, resp_NK.T):
        if r_N.sum() > 1e-10 * total:  # one that lost all rows keeps its shape
            part.fit(X, sample_weight=r_N)
    return Fitted(mass_K / total, parts)


def _draw(part: Any, count: int, seed: int) -> Any:
    """Rows from a component, with a seed of its own where it takes one."""
    parameters = inspect.signature(part.sample).parameters
    if "random_state" in parameters:
        return part.sample(count, random_state=seed)
    seeded = hasattr(part, "get_params") and "random_state" in part.get_params(deep=False)
    if seeded:
        part = copy.copy(part).set_params(random_state=seed)
    return part.sample(count)


def _assign(X: np.ndarray, weight_N: np.ndarray, parts: list[Any], soft_NK: np.ndarray) -> np.ndarray:
    """Which cluster suits which component best (Hungarian method on the weighted log-likelihoods)."""
    from scipy.optimize import linear_sum_assignment

    K = len(parts)
    gain_KK = np.empty((K, K))
    resp_KN = soft_NK.T * weight_N
    for i, part in enumerate(parts):
        for k, r_N in enumerate(resp_KN):
            fitted = copy.deepcopy(part).fit(X, sample_weight=r_N)
            gain_KK[i, k] = r_N @ _log_prob(fitted, X)
    finite_KK = np.nan_to_num(gain_KK, neginf=-1e300, posinf=1e300)
    _, cluster_K = linear_sum_assignment(-finite_KK)
    return cluster_K


def _log_prob(part: Any, X: np.ndarray) -> np.ndarray:
    score = part.log_prob if hasattr(part, "log_prob") else part.score_samples
    return np.asarray(score(X), float)


def _joint(X: np.ndarray, weights_K: np.ndarray, parts: list[Any]) -> np.ndarray:
    """Log weights plus log densities (N, K)."""
    log_weights_K = log_positive(weights_K)
    columns = [log_weight + _log_prob(part, X) for log_weight, part in zip(log_weights_K, parts)]
    return np.stack(columns, 1)


def _posterior(joint_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log densities (N,) and responsibilities (N, K), equal ones where no component has any density."""
    top_N1 = joint_NK.max(1, keepdims=True)
    nowhere_N1 = np.isneginf(top_N1)
    finite_N1 = np.where(nowhere_N1, 0.0, top_N1)
    below_NK = np.where(nowhere_N1, 0.0, joint_NK - finite_N1)
    raised_NK = np.exp(below_NK)
    total_N1 = raised_NK.sum(1, keepdims=True)
    log_density_N1 = np.log(total_N1) + top_N1
    return log_density_N1[:, 0], raised_NK / total_N1


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two Gaussian components, each itself a mixture of one."""
    centres_2D = torch.tensor([[-3.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    centres_ND = centres_2D.repeat_interleave(60, 0)
    noise_ND = torch.randn(120, 2, generator=generator, dtype=torch.float64)
    x_ND = centres_ND + noise_ND
    parts = [GaussianMixture(1), GaussianMixture(1)]
    return {"estimator": Mixture(parts, random_state=0, tol=1e-6), "X": x_ND.numpy()}
