"""What a fitted mixture is used for: densities, labels, responsibilities, draws, criteria.

N rows, D columns, K components.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mixwell.core.files import write_bytes
from mixwell.density._options import Configured
from mixwell.density.mixtures.em.exported import Graph
from mixwell.density.mixtures.em.inputs import checked_weights, open_input
from mixwell.density.mixtures.em.loop import Family, Params
from mixwell.density.mixtures.em.rows import Rows
from mixwell.density.mixtures.em.scoring import Scorer, score_rows


def as_array(value: Any) -> np.ndarray:
    """A fitted attribute, which is a tensor where the rows were one, as an array."""
    return torch.as_tensor(value).cpu().numpy()


class Scores(DensityMixin, Configured):
    """The half of a mixture estimator that reads its fitted attributes."""

    _allow_nan = False
    _sparse = False  # whether SciPy's sparse tables are taken

    @abstractmethod
    def _scoring(self, dtype: torch.dtype, device: torch.device) -> tuple[Family, Params]:
        """Family and parameters (one start) from the fitted attributes."""

    @abstractmethod
    def _n_parameters(self) -> int:
        """Number of free parameters."""

    @abstractmethod
    def _draw(self, rng: np.random.RandomState, counts_K: np.ndarray) -> np.ndarray:
        """Rows drawn from the components in order, `counts_K` from each."""

    def _check_input(self, rows: Rows) -> None:
        """Refuse values outside the family's support."""

    def _seen(self, x_BD: Tensor) -> Tensor:
        """Rows as the family sees them."""
        return x_BD

    def _open(self, X: Any, *, reset: bool) -> Rows:
        return open_input(self, X, reset=reset, allow_nan=self._allow_nan, sparse=self._sparse)

    def score_samples(self, X: Any) -> Any:
        """Log density of every row (N,), in nats; an error before `fit`."""
        return self._emit(self._log_density(self._rows(X)), X)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Mean log density of the rows, in nats, weighted by `sample_weight`; an error before `fit`."""
        rows = self._rows(X)
        weights_N = checked_weights(sample_weight, rows)
        log_density_N = self._log_density(rows).double()
        if weights_N is None:
            return float(log_density_N.mean())
        total = log_density_N @ weights_N
        return float(total / weights_N.sum())

    def predict(self, X: Any) -> Any:
        """The most probable component of every row (N,); an error before `fit`."""
        return self._emit(self._labels(self._rows(X)), X)

    def predict_proba(self, X: Any) -> Any:
        """Responsibilities (N, K); an error before `fit`."""
        return self._emit(self._responsibilities(self._rows(X)), X)

    def to_onnx(self, path: str | Path) -> Path:
        """Write an ONNX model with the input `X` (N, D) and the outputs `labels` (N,) and `responsibilities` (N, K).

        All of them are in float64; rows lack no value. Raises a `ValueError` for a mixture that has no such form, a
        `MixwellError` where the onnx package is not there, a `NotFittedError` before a fit.
        """
        check_is_fitted(self)
        graph = Graph()
        log_joint_KN = self._log_joint_graph(graph)
        model = graph.serialised(log_joint_KN, self.n_features_in_)
        return write_bytes(path, model)

    def _log_joint_graph(self, graph: Graph) -> str:
        """Log weights plus log densities (K, N) of the rows, up to what all components share."""
        raise ValueError(f"{type(self).__name__} has no ONNX form; expected a GaussianMixture, StudentTMixture, "
                         "PoissonMixture or ExponentialMixture.")

    def sample(self, n_samples: int = 1) -> tuple[Any, Any]:
        """Rows (n_samples, D) drawn from the mixture, grouped by component, and their components (n_samples,).

        Raises a `ValueError` where fewer than one is asked for, a `NotFittedError` before a fit.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples} . The sampling requires at least one sample.")
        rng = check_random_state(self.random_state)
        weights_K = as_array(self.weights_).astype(np.float64)
        share_K = weights_K / weights_K.sum()
        counts_K = rng.multinomial(n_samples, share_K)
        x_ND = self._draw(rng, counts_K)
        components_K = np.arange(len(counts_K))
        labels_N = np.repeat(components_K, counts_K)
        if not isinstance(self.weights_, Tensor):
            return x_ND, labels_N
        device = self.weights_.device
        return torch.as_tensor(x_ND, device=device), torch.as_tensor(labels_N, device=device)

    def bic(self, X: Any, sample_weight: Any = None) -> float:
        """Bayesian information criterion on X; lower is better (mclust's has the other sign).

        sample_weight (N,): frequencies; a row of weight 3 counts as three, and N is their sum. Survey weights, which
        stand for parts of a population, are to be scaled first so that they sum to the number of rows.
        """
        return self._criterion(X, sample_weight, math.log)

    def aic(self, X: Any, sample_weight: Any = None) -> float:
        """Akaike information criterion on X, rows counted as by `bic`; lower is better."""
        return self._criterion(X, sample_weight, lambda rows: 2.0)

    def sabic(self, X: Any, sample_weight: Any = None) -> float:
        """BIC with Sclove's sample size (n + 2) / 24, rows counted as by `bic`; lower is better."""
        def price(rows: float) -> float:
            return math.log((rows + 2) / 24)

        return self._criterion(X, sample_weight, price)

    def caic(self, X: Any, sample_weight: Any = None) -> float:
        """Bozdogan's consistent AIC: BIC plus the number of parameters, rows counted as by `bic`; lower is better."""
        def price(rows: float) -> float:
            return math.log(rows) + 1

        return self._criterion(X, sample_weight, price)

    def _criterion(self, X: Any, sample_weight: Any, price: Callable[[float], float]) -> float:
        """-2 log likelihood plus a price for each parameter that depends on the number of rows."""
        rows = self._rows(X)
        weights_N = checked_weights(sample_weight, rows)
        n = float(rows.n_rows if weights_N is None else weights_N.sum())
        log_likelihood = n * self.score(X, sample_weight=sample_weight)
        penalty = price(n) * self._n_parameters()
        return penalty - 2 * log_likelihood

    def icl(self, X: Any, sample_weight: Any = None) -> float:
        """Integrated completed likelihood on X: BIC plus twice the entropy of the responsibilities; lower is better.

        Rows counted as by `bic`; an error before `fit`.
        """
        entropy = self._entropy(X, sample_weight)
        return self.bic(X, sample_weight) + 2 * entropy

    def entropy_r2(self, X: Any, sample_weight: Any = None) -> float:
        """How well rows are told apart: 1 - entropy of the responsibilities / (n log K), 1 for one component.

        Rows counted as by `bic`; an error before `fit`.
        """
        K = len(self.weights_) if hasattr(self, "weights_") else 1
        entropy = self._entropy(X, sample_weight)
        if K == 1:
            return 1.0
        weights_N = checked_weights(sample_weight, self._rows(X))
        n = float(self._count(X) if weights_N is None else weights_N.sum())
        return 1 - entropy / (n * math.log(K))

    def _entropy(self, X: Any, sample_weight: Any) -> float:
        """Entropy of the responsibilities, summed over rows, in nats."""
        rows = self._rows(X)
        weights_N = checked_weights(sample_weight, rows)
        resp_NK = self._responsibilities(rows).double()
        entropy_N = -torch.xlogy(resp_NK, resp_NK).sum(1)
        total = entropy_N.sum() if weights_N is None else entropy_N @ weights_N
        return float(total)

    def _rows(self, X: Any) -> Rows:
        """Rows to score, checked."""
        check_is_fitted(self)
        rows = self._open(X, reset=False)
        self._check_input(rows)
        return rows

    def _scorer(self, rows: Rows) -> Scorer:
        return Scorer(*self._scoring(rows.dtype, rows.device))

    def _log_density(self, rows: Rows) -> Tensor:
        scorer = self._scorer(rows)
        out_N = torch.empty(rows.n_rows, dtype=rows.dtype, device=rows.device)
        return score_rows(scorer, rows, scorer.log_density, out_N)

    def _labels(self, rows: Rows) -> Tensor:
        scorer = self._scorer(rows)
        out_N = torch.empty(rows.n_rows, dtype=torch.long, device=rows.device)
        return score_rows(scorer, rows, scorer.labels, out_N)

    def _responsibilities(self, rows: Rows) -> Tensor:
        scorer = self._scorer(rows)
        out_NK = torch.empty(rows.n_rows, scorer.components, dtype=rows.dtype, device=rows.device)
        return score_rows(scorer, rows, scorer.responsibilities, out_NK)

    def _count(self, X: Any) -> int:
        return self._open(X, reset=False).n_rows

    def _emit(self, value: Tensor, like: Any) -> Any:
        """A tensor where the rows were one, else an array."""
        return value if isinstance(like, Tensor) else value.cpu().numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._allow_nan
        tags.input_tags.sparse = self._sparse
        return tags
