"""Number of components: fit a range and keep what a criterion likes best.

**Equation:** BIC = -2 loglik + P log N; AIC = -2 loglik + 2 P; SABIC = BIC with (N + 2) / 24 for N; CAIC = BIC + P; ICL
= BIC + 2 entropy of the responsibilities; cv = minus the mean held-out log-likelihood of a row over folds; slope =
-loglik + 2 s P with s from the data (see `density.selection.slope_heuristic`). loglik is over all N rows, in nats; P
counts free parameters. The smallest wins.

**Shapes:** X (N, D); `scores_` maps each number of components to its criterion.

**Reference:** Schwarz (1978), Estimating the Dimension of a Model; Akaike (1974); Biernacki, Celeux, Govaert (2000),
Assessing a Mixture Model for Clustering with the Integrated Completed Likelihood; Smyth (2000), Model selection for
probabilistic clustering using cross-validated likelihood.

**Differs:** "cv" chooses by the one-standard-error rule with `one_standard_error=True` (default False: the best mean).

**Fails when:** starts are poor: a criterion then judges the optimiser; raise the estimator's `n_init`. "cv" needs rows
in memory, "icl" an estimator with `icl`, "slope" at least four numbers of components (`ValueError`).

**Cost:** one fit a number of components, and `folds` more of each for "cv".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import KFold
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from mixwell.core.method import method
from mixwell.density._options import Configured
from mixwell.density.mixtures.gaussian import GaussianMixture
from mixwell.density.selection.slope_heuristic import slope_heuristic

OWN = ("bic", "aic", "icl", "sabic", "caic")  # criteria that a mixture has itself
CRITERIA = (*OWN, "cv", "slope")


@dataclass(frozen=True)
class Config:
    """Options of the choice."""

    estimator: Any = None  # a mixture with `n_components`; None: a Gaussian one
    n_components: int | Iterable[int] = tuple(range(1, 11))  # the numbers to try, or one number
    _: KW_ONLY
    criterion: Literal["bic", "aic", "icl", "sabic", "caic", "cv", "slope"] = "bic"
    folds: int = 5  # of "cv"
    one_standard_error: bool = False  # of "cv": the smallest number within one of the best
    random_state: Any = None  # of the folds


@method(title="Choice of the number of components", year=1978, tags={"estimator", "sklearn"})
class ComponentSearch(Configured, BaseEstimator, config=Config):
    """Fits `estimator` with every number of components and keeps the best as `best_estimator_`.

    Options: see `Config`. Fitted: `best_n_components_`, `best_estimator_`, `scores_` (smaller is better),
    `log_likelihoods_` (nats over all rows).
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> ComponentSearch:
        """Fit the range; returns self.

        sample_weight (N,): frequencies, as `bic` of a mixture takes them; N of the criteria is their sum.
        Raises a `ValueError` where there is no number to try, or the criterion is none that the estimator has.
        """
        base = self._base()
        self._check_criterion(base)
        numbers = self._numbers()
        weights = _weights(sample_weight)
        fitted = {k: clone(base).set_params(n_components=k).fit(X, **weights) for k in numbers}
        self.log_likelihoods_ = {}
        for k, model in fitted.items():
            total = weights["sample_weight"].sum() if weights else _count(model, X)
            self.log_likelihoods_[k] = float(model.score(X, **weights) * total)
        self.scores_ = self._scores(base, fitted, X, weights)
        best = min(numbers, key=self.scores_.__getitem__)
        if self.criterion == "cv" and self.one_standard_error:
            limit = self.scores_[best] + self.standard_errors_[best]
            best = next(k for k in numbers if self.scores_[k] <= limit)
        chosen = fitted[best]
        self.best_n_components_ = best
        self.best_estimator_ = chosen
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(chosen, name):
                value = getattr(chosen, name)
                setattr(self, name, value)
        return self

    def _check_criterion(self, base: Any) -> None:
        if self.criterion not in CRITERIA:
            raise ValueError(f"criterion={self.criterion!r}; expected one of {', '.join(CRITERIA)}.")
        own = self.criterion in OWN
        if own and not hasattr(base, self.criterion):
            raise ValueError(f"{type(base).__name__} has no {self.criterion}; choose another criterion, or 'cv'.")

    def _numbers(self) -> list[int]:
        """The numbers of components to try, in order."""
        given: Any = self.n_components
        if isinstance(given, Integral):
            given = [int(given)]
        numbers = sorted(set(given))
        if not numbers:
            raise ValueError("n_components is empty; expected the numbers of components to try.")
        return numbers

    def _scores(self, base: Any, fitted: dict[int, Any], X: Any, weights: dict[str, Any]) -> dict[int, float]:
        """The criterion of every number of components."""
        if self.criterion == "cv":
            return self._held_out(base, X, list(fitted), weights)
        if self.criterion != "slope":
            return {k: getattr(model, self.criterion)(X, **weights) for k, model in fitted.items()}
        values = np.array(list(self.log_likelihoods_.values()))
        sizes = np.array([model._n_parameters() for model in fitted.values()])
        _, self.slope_, scores = slope_heuristic(values, sizes)
        return dict(zip(fitted, scores.tolist()))

    def _base(self) -> Any:
        return GaussianMixture() if self.estimator is None else self.estimator

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self._base()).input_tags
        return tags

    def _held_out(self, base: Any, X: Any, numbers: list[int], weights: dict[str, Any]) -> dict[int, float]:
        """Minus the mean log-likelihood of a row that was left out, by number of components."""
        x_ND = X if isinstance(X, (np.ndarray, torch.Tensor)) else np.asarray(X)
        if x_ND.ndim != 2:
            raise ValueError("criterion='cv' got files; expected rows in memory. Choose bic, aic, icl or slope.")
        folds = KFold(self.folds, shuffle=True, random_state=self.random_state)
        splits = list(folds.split(np.empty((len(x_ND), 1))))
        self.standard_errors_: dict[int, float] = {}
        losses = {}
        for k in numbers:
            model = clone(base).set_params(n_components=k)
            scores = []
            for train, test in splits:
                learnt = clone(model).fit(x_ND[train], **_part(weights, train))
                scores.append(learnt.score(x_ND[test], **_part(weights, test)))
            spread = np.std(scores, ddof=1)
            self.standard_errors_[k] = float(spread / np.sqrt(len(scores)))
            losses[k] = -float(np.mean(scores))
        return losses

    def predict(self, X: Any) -> Any:
        """Labels by the chosen mixture (N,); an error before `fit`."""
        check_is_fitted(self)
        return self.best_estimator_.predict(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density by the chosen mixture, in nats; an error before `fit`."""
        check_is_fitted(self)
        return self.best_estimator_.score(X)


def _weights(sample_weight: Any) -> dict[str, Any]:
    """The weights as arguments; none for estimators that take none."""
    if sample_weight is None:
        return {}
    weights_N = np.asarray(sample_weight, dtype=np.float64)
    return {"sample_weight": weights_N}


def _part(weights: dict[str, Any], places: np.ndarray) -> dict[str, Any]:
    """The weights of some rows."""
    return {name: weights_N[places] for name, weights_N in weights.items()}


def _count(model: Any, X: Any) -> int:
    if hasattr(model, "_count"):
        return model._count(X)
    return len(X)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three groups on a line."""
    centres_31 = torch.tensor([[-6.0], [0.0], [6.0]], dtype=torch.float64)
    centres_N1 = centres_31.repeat_interleave(40, 0)
    noise_N1 = torch.randn(120, 1, generator=generator, dtype=torch.float64)
    x_N1 = centres_N1 + noise_N1
    base = GaussianMixture(random_state=0)
    return {
        "estimator": ComponentSearch(base, range(1, 6)),
        "X": x_N1.numpy(),
    }
