"""Split and merge: a Gaussian mixture that leaves poor optima, and finds its number of components, by local moves.

**Equation:** merge candidates by the overlap of responsibilities, J_ij = r_i . r_j / (|r_i| |r_j|); split candidates by
the local Kullback-Leibler divergence J_k = sum_n f_k(n) log(f_k(n) / N(x_n; k)), f_k = r_k / sum r_k. A move (merge,
split, or both together) is followed by EM and kept where it lowers BIC.

**Shapes:** X (N, D); fitted as a full-covariance `GaussianMixture`, `history_` lists the moves kept.

**Reference:** Ueda, Nakano, Ghahramani, Hinton (2000), SMEM Algorithm for Mixture Models, section 3; with single moves
as in Zhang, Zhang, Yi (2004), Competitive EM algorithm for finite mixture models.

**Differs:** moves are judged by BIC, so that the number of components may change (SMEM keeps it); a move that leaves a
component with fewer than D + 1 rows is refused; the equations are from memory of the papers.

**Fails when:** groups are far from Gaussian: BIC then splits them as often as their shape asks for.

**Cost:** at most `max_moves` moves kept; each tries up to 2 `candidates` splits and merges and `candidates`^2 swaps,
every one an EM run from where the components stand.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from mixwell.core.method import method
from mixwell.density._gaussian import TINY, log_positive, moments
from mixwell.density._options import Configured
from mixwell.density.mixtures.gaussian import GaussianMixture

Parameters = tuple[np.ndarray, np.ndarray, np.ndarray]  # weights (K,), means (K, D), covariances (K, D, D)


@dataclass(frozen=True)
class Config:
    """Options of split and merge."""

    n_components: int = 1  # how many to begin with
    _: KW_ONLY
    max_moves: int = 30  # kept, at most
    candidates: int = 3  # trials of each kind of move before giving up
    moves: Literal["free", "swap"] = "free"  # their number may change, or (SMEM) a merge and a split together
    random_state: Any = None  # of the first fit


@method(title="Split and merge", year=2000, paper="SMEM Algorithm for Mixture Models",
        tags={"estimator", "density", "responsibilities", "sklearn"})
class SplitMergeMixture(DensityMixin, Configured, BaseEstimator, config=Config):
    """Full-covariance Gaussian mixture whose components split and merge.

    Options: see `Config`. Fitted: `mixture_`, `n_components_`, `history_`, `bics_`.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "max_moves": [Interval(Integral, 0, None, closed="left")],
        "candidates": [Interval(Integral, 1, None, closed="left")],
        "moves": [StrOptions({"free", "swap"})],
        "random_state": ["random_state"],
    }

    def fit(self, X: Any, y: Any = None) -> SplitMergeMixture:
        """EM, then moves while one lowers BIC; returns self."""
        self._validate_params()
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        best = GaussianMixture(self.n_components, random_state=self.random_state).fit(X)
        self.history_, self.bics_ = [], [best.bic(X)]
        for _ in range(self.max_moves):
            better = self._improve(best, X)
            if better is None:
                break
            name, best = better
            self.history_.append(name)
            self.bics_.append(best.bic(X))
        self.mixture_, self.n_components_ = best, len(best.weights_)
        return self

    def _improve(self, model: GaussianMixture, X: np.ndarray) -> tuple[str, Any] | None:
        """The first move whose result has a lower BIC."""
        for name, (weights, means, covariances) in self._proposals(model, X):
            if len(weights) > len(X):
                continue
            trial = self._start(weights, means, covariances)
            try:
                trial.fit(X)
            except ValueError:  # a component collapsed: not a move worth keeping
                continue
            if trial.weights_.min() * len(X) < X.shape[1] + 1:
                continue  # a spike on fewer rows than a covariance needs has any likelihood it likes
            if trial.bic(X) < self.bics_[-1] - 1e-6 * abs(self.bics_[-1]):
                return name, trial
        return None

    def _start(self, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> GaussianMixture:
        """A mixture that EM starts from these parameters."""
        precisions = np.linalg.inv(covariances)
        return GaussianMixture(len(weights), weights_init=weights / weights.sum(), means_init=means,
                               precisions_init=precisions, max_iter=100)

    def _proposals(self, model: Any, X: np.ndarray) -> list[tuple[str, Parameters]]:
        """Moves to try, in order."""
        fitted = (model.weights_, model.means_, model.covariances_)
        weights, means, covariances = (np.asarray(value, float) for value in fitted)
        params = (weights, means, covariances)
        resp_NK = model.predict_proba(X).astype(float)
        pairs, splits = merge_order(resp_NK), split_order(resp_NK, model, X)
        found: list[tuple[str, Parameters]] = []
        if self.moves == "free":
            for rank in range(self.candidates):
                found += [("split", split(params, k)) for k in splits[rank : rank + 1]]
                found += [("merge", merge(params, i, j)) for i, j in pairs[rank : rank + 1]]
        for i, j in pairs[: self.candidates]:
            others = [k for k in splits if k not in (i, j)]
            found += [("swap", swap(params, i, j, k)) for k in others[: self.candidates]]
        return found

    def score_samples(self, X: Any) -> np.ndarray:
        """Log density of every row (N,), in nats; an error before `fit`."""
        return self._mixture(X).score_samples(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density, in nats; an error before `fit`."""
        return self._mixture(X).score(X)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable component of every row (N,); an error before `fit`."""
        return self._mixture(X).predict(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Responsibilities (N, K); an error before `fit`."""
        return self._mixture(X).predict_proba(X)

    def _mixture(self, X: Any) -> Any:
        check_is_fitted(self)
        validate_data(self, X, reset=False)
        return self.mixture_


def merge_order(resp_NK: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of components, the most overlapping first."""
    length_K = np.linalg.norm(resp_NK, axis=0)
    safe_K = np.maximum(length_K, TINY)
    unit_NK = resp_NK / safe_K
    overlap_KK = unit_NK.T @ unit_NK
    i, j = np.triu_indices(len(overlap_KK), 1)
    overlap_P = overlap_KK[i, j]
    order_P = np.argsort(-overlap_P, kind="stable")
    first = i[order_P].tolist()
    second = j[order_P].tolist()
    return list(zip(first, second))


def split_order(resp_NK: np.ndarray, model: Any, X: np.ndarray) -> list[int]:
    """Components, the worst described first."""
    total_K = np.maximum(resp_NK.sum(0), TINY)
    share_NK = resp_NK / total_K
    log_N1 = model.score_samples(X).astype(float)[:, None]
    own_NK = log_positive(resp_NK) + log_N1 - log_positive(model.weights_)
    apart_NK = share_NK * (log_positive(share_NK) - own_NK)
    divergence_K = np.where(share_NK > 0, apart_NK, 0.0).sum(0)
    order_K = np.argsort(-divergence_K, kind="stable")
    return order_K.tolist()


def split(params: Parameters, k: int) -> Parameters:
    """Component k in two along its longest axis, mean and covariance kept."""
    weights, means, covariances = (np.delete(part, k, 0) for part in params)
    weight, mean_D, covariance_DD = (part[k] for part in params)
    values, vectors = np.linalg.eigh(covariance_DD)
    axis_D = vectors[:, -1] * np.sqrt(values[-1])
    shift_D = 0.8 * axis_D
    narrow_DD = covariance_DD - 0.64 * np.outer(axis_D, axis_D)
    halves = np.full(2, weight / 2)
    ends = np.stack([mean_D + shift_D, mean_D - shift_D])
    both = np.stack([narrow_DD, narrow_DD])
    return _joined((weights, means, covariances), (halves, ends, both))


def swap(params: Parameters, i: int, j: int, k: int) -> Parameters:
    """Component k in two, and i and j in one."""
    left_i, left_j = i - (k < i), j - (k < j)  # the split component leaves its place
    return merge(split(params, k), left_i, left_j)


def _joined(some: Parameters, others: Parameters) -> Parameters:
    weights, means, covariances = (np.concatenate(pair) for pair in zip(some, others))
    return weights, means, covariances


def merge(params: Parameters, i: int, j: int) -> Parameters:
    """Components i and j in one, mean and covariance kept."""
    pair = [i, j]
    weights, means, covariances = (part[pair] for part in params)
    rest_w, rest_m, rest_s = (np.delete(part, pair, 0) for part in params)
    weight = weights.sum()
    mean_D, covariance_DD = moments(weights / weight, means, covariances)
    one = (
        weight[None],
        mean_D[None],
        covariance_DD[None],
    )
    return _joined((rest_w, rest_m, rest_s), one)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three groups in the plane."""
    centres_3D = torch.tensor([[-6.0, 0.0], [0.0, 0.0], [6.0, 2.0]], dtype=torch.float64)
    centres_ND = centres_3D.repeat_interleave(50, 0)
    noise_ND = torch.randn(150, 2, generator=generator, dtype=torch.float64)
    x_ND = centres_ND + noise_ND
    return {"estimator": SplitMergeMixture(1, random_state=0), "X": x_ND.numpy()}
