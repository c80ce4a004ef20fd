"""Mixture of any components that can weigh rows: each gives log densities and fits itself to weighted rows.

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
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, get_tags
from sklearn.utils.validation import check_is_fitted, validate_data

from mixwell.core.method import method
from mixwell.density._gaussian import log_positive
from mixwell.density._options import Configured
from mixwell.density.mixtures.em.rows import imputed
from mixwell.density.mixtures.gaussian import GaussianMixture


@dataclass(frozen=True)
class Config:
    """Options of the mixture of any components."""

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
            scores = hasattr(component, "log_prob") or hasattr(component, "score_samples")
            if not scores or not hasattr(component, "fit"):
                raise ValueError(f"{component!r} has no log_prob (or score_samples) or no fit; a component needs both.")


@method(title="Mixture of any components", year=1977, tags={"estimator", "mixture"})
class Mixture(DensityMixin, Configured, BaseEstimator, config=Config):
    """Mixture of given components, which may be of different kinds.

    components: objects with `log_prob(X) -> (N,)` (or scikit-learn's `score_samples`) and `fit(X, sample_weight=...)`;
    they are copied, the given ones stay as they are. A component with `sample(n)` makes the mixture sample. X may hold
    NaN where every component's tags allow it. Other options: see `Config`.
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Mixture:
        """EM from `n_init` starts; keeps the best. Returns self."""
        self._config()
        X = self._validated(X, ensure_min_samples=max(2, len(self.components)))
        weight_N = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, float)
        if weight_N.shape != (len(X),) or (weight_N < 0).any() or weight_N.sum() <= 0:
            raise ValueError(f"sample_weight must hold {len(X)} numbers, none negative, not all zero.")
        rng = check_random_state(self.random_state)
        runs = [self._climb(X, weight_N, rng) for _ in range(self.n_init)]
        self.weights_, self.components_, self.lower_bounds_, self.converged_ = max(runs, key=lambda run: run[2][-1])
        self.lower_bound_, self.n_iter_ = self.lower_bounds_[-1], len(self.lower_bounds_)
        if not self.converged_:
            warnings.warn("Best performing initialization did not converge. Try a larger max_iter or tol.",
                          ConvergenceWarning, stacklevel=2)
        return self

    def _validated(self, X: Any, **how: Any) -> np.ndarray:
        finite: Any = "allow-nan" if self._takes_nan() else True
        return validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite=finite, **how)

    def _takes_nan(self) -> bool:
        """Whether every component says that it takes missing values."""
        return len(self.components) > 0 and all(isinstance(part, BaseEstimator) and get_tags(part).input_tags.allow_nan
                                                for part in self.components)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._takes_nan()
        return tags

    def _climb(self, X: np.ndarray, weight_N: np.ndarray, rng: np.random.RandomState) -> tuple:
        weights_K, parts = self._start(X, weight_N, rng)
        bounds: list[float] = []
        converged = False
        for _ in range(self.max_iter):
            norm_N, resp_NK = _posterior(_joint(X, weights_K, parts))
            if np.isneginf(norm_N[weight_N > 0]).any():
                row = int(np.flatnonzero(np.isneginf(norm_N) & (weight_N > 0))[0])
                raise ValueError(f"row {row} has no density under any component; remove it or add a component that "
                                 "reaches it.")
            bounds.append(float(norm_N[weight_N > 0] @ weight_N[weight_N > 0] / weight_N.sum()))
            gain = bounds[-1] - bounds[-2] if len(bounds) > 1 else math.inf
            if gain < -1e-6 * max(1, abs(bounds[-1])):
                warnings.warn(f"the likelihood fell by {-gain:.3g}: a component's fit is not weighted maximum "
                              "likelihood.", UserWarning, stacklevel=4)
            converged = abs(gain) < self.tol
            if converged:
                break
            resp_NK = resp_NK * weight_N[:, None]
            weights_K = resp_NK.sum(0) / weight_N.sum()
            for part, r_N in zip(parts, resp_NK.T):
                if r_N.sum() > 1e-10 * weight_N.sum():  # one that lost all rows keeps its shape
                    part.fit(X, sample_weight=r_N)
        return weights_K, parts, bounds, converged

    def _start(self, X: np.ndarray, weight_N: np.ndarray, rng: np.random.RandomState) -> tuple[np.ndarray, list[Any]]:
        parts, K = [copy.deepcopy(component) for component in self.components], len(self.components)
        if self.init == "given":
            return np.full(K, 1 / K), parts
        points_ND = imputed(torch.from_numpy(np.array(X))).numpy()
        labels_N = KMeans(K, n_init=1, random_state=rng).fit(points_ND, sample_weight=weight_N).labels_
        soft_NK = 0.9 * np.eye(K)[labels_N] + 0.1 / K  # every component sees every row a little
        if len({type(part) for part in parts}) > 1:
            soft_NK = soft_NK[:, _assign(X, weight_N, parts, soft_NK)]
        for part, r_N in zip(parts, soft_NK.T):
            part.fit(X, sample_weight=r_N * weight_N)
        return np.average(soft_NK, axis=0, weights=weight_N), parts

    def score_samples(self, X: Any) -> np.ndarray:
        """Log density of every row (N,), in nats."""
        return _posterior(self._all(X))[0]

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density, in nats."""
        return float(self.score_samples(X).mean())

    def predict_proba(self, X: Any) -> np.ndarray:
        """Responsibilities (N, K)."""
        return _posterior(self._all(X))[1]

    def predict(self, X: Any) -> np.ndarray:
        """The most probable component of every row (N,)."""
        return self._all(X).argmax(1)

    def _all(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        return _joint(X, self.weights_, self.components_)

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Rows drawn from the components' own `sample(n)`, and their components.

        The mixture's `random_state` decides all draws of components that have a `random_state`, or whose `sample`
        takes one.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples={n_samples}; expected at least 1.")
        rng = check_random_state(self.random_state)
        counts_K = rng.multinomial(n_samples, self.weights_)
        seeds_K = rng.randint(np.iinfo(np.int32).max, size=len(counts_K))
        drawn = [_draw(part, int(n), int(seed)) for part, n, seed in zip(self.components_, counts_K, seeds_K) if n]
        rows = [np.asarray(d[0] if isinstance(d, tuple) else d) for d in drawn]
        return np.vstack(rows), np.repeat(np.arange(len(counts_K)), counts_K)


def _draw(part: Any, count: int, seed: int) -> Any:
    """Rows from a component, with a seed of its own where it takes one."""
    if "random_state" in inspect.signature(part.sample).parameters:
        return part.sample(count, random_state=seed)
    if hasattr(part, "get_params") and "random_state" in part.get_params(deep=False):
        part = copy.copy(part).set_params(random_state=seed)
    return part.sample(count)


def _assign(X: np.ndarray, weight_N: np.ndarray, parts: list[Any], soft_NK: np.ndarray) -> np.ndarray:
    """Which cluster suits which component best (Hungarian method on the weighted log-likelihoods)."""
    from scipy.optimize import linear_sum_assignment

    gain = np.empty((len(parts), len(parts)))
    for i, part in enumerate(parts):
        for k, r_N in enumerate(soft_NK.T * weight_N):
            gain[i, k] = r_N @ _log_prob(copy.deepcopy(part).fit(X, sample_weight=r_N), X)
    return linear_sum_assignment(-np.nan_to_num(gain, neginf=-1e300, posinf=1e300))[1]


def _log_prob(part: Any, X: np.ndarray) -> np.ndarray:
    return np.asarray(part.log_prob(X) if hasattr(part, "log_prob") else part.score_samples(X), float)


def _joint(X: np.ndarray, weights_K: np.ndarray, parts: list[Any]) -> np.ndarray:
    return np.stack([log + _log_prob(part, X) for log, part in zip(log_positive(weights_K), parts)], 1)


def _posterior(joint_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log densities (N,) and responsibilities (N, K), equal ones where no component has any density."""
    top_N1 = joint_NK.max(1, keepdims=True)
    nowhere_N1 = np.isneginf(top_N1)
    raised_NK = np.exp(np.where(nowhere_N1, 0.0, joint_NK - np.where(nowhere_N1, 0.0, top_N1)))
    total_N1 = raised_NK.sum(1, keepdims=True)
    return (np.log(total_N1) + top_N1)[:, 0], raised_NK / total_N1


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two Gaussian components, each itself a mixture of one."""
    centres_ND = torch.tensor([[-3.0, 0.0], [3.0, 1.0]], dtype=torch.float64).repeat_interleave(60, 0)
    x_ND = centres_ND + torch.randn(120, 2, generator=generator, dtype=torch.float64)
    return {"estimator": Mixture([GaussianMixture(1), GaussianMixture(1)], random_state=0, tol=1e-6), "X": x_ND.numpy()}
