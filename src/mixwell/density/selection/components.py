"""Number of components: fit a range and keep what a criterion likes best.

**Equation:** BIC = -2 loglik + P log N; AIC = -2 loglik + 2 P; ICL = BIC + 2 entropy of the responsibilities; cv =
minus the mean held-out log-likelihood of a row over folds; slope = -loglik + 2 s P with s from the data (see
`density.selection.slope_heuristic`). loglik is over all N rows, in nats; P counts free parameters. The smallest wins.

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

CRITERIA = ("bic", "aic", "icl", "cv", "slope")


@dataclass(frozen=True)
class Config:
    """Options of the choice."""

    estimator: Any = None  # a mixture with `n_components`; None: a Gaussian one
    n_components: int | Iterable[int] = tuple(range(1, 11))  # the numbers to try, or one number
    _: KW_ONLY
    criterion: Literal["bic", "aic", "icl", "cv", "slope"] = "bic"
    folds: int = 5  # of "cv"
    one_standard_error: bool = False  # of "cv": the smallest number within one of the best
    random_state: Any = None  # of the folds


@method(title="Choice of the number of components", year=1978, tags={"estimator", "sklearn"})
class ComponentSearch(Configured, BaseEstimator, config=Config):
    """Fits `estimator` with every number of components and keeps the best as `best_estimator_`.

    Options: see `Config`. Fitted: `best_n_components_`, `best_estimator_`, `scores_` (smaller is better),
    `log_likelihoods_` (nats over all rows).
    """

    def fit(self, X: Any, y: Any = None) -> ComponentSearch:
        """Fit the range; returns self."""
        if self.criterion not in CRITERIA:
            raise ValueError(f"criterion={self.criterion!r}; expected one of {', '.join(CRITERIA)}.")
        given: Any = self.n_components
        numbers: list[int] = sorted({int(given)} if isinstance(given, Integral) else set(given))
        if not numbers:
            raise ValueError("n_components is empty; expected the numbers of components to try.")
        base = self._base()
        if self.criterion in ("aic", "bic", "icl") and not hasattr(base, self.criterion):
            raise ValueError(f"{type(base).__name__} has no {self.criterion}; choose another criterion, or 'cv'.")
        fitted = {k: clone(base).set_params(n_components=k).fit(X) for k in numbers}
        self.log_likelihoods_ = {k: model.score(X) * _count(model, X) for k, model in fitted.items()}
        if self.criterion == "slope":
            sizes = np.array([model._n_parameters() for model in fitted.values()])
            _, self.slope_, scores = slope_heuristic(np.array(list(self.log_likelihoods_.values())), sizes)
            self.scores_ = dict(zip(numbers, scores.tolist()))
        elif self.criterion == "cv":
            self.scores_ = self._held_out(base, X, numbers)
        else:
            self.scores_ = {k: getattr(model, self.criterion)(X) for k, model in fitted.items()}
        self.best_n_components_ = min(numbers, key=self.scores_.__getitem__)
        if self.criterion == "cv" and self.one_standard_error:
            limit = self.scores_[self.best_n_components_] + self.standard_errors_[self.best_n_components_]
            self.best_n_components_ = next(k for k in numbers if self.scores_[k] <= limit)
        self.best_estimator_ = fitted[self.best_n_components_]
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self.best_estimator_, name):
                setattr(self, name, getattr(self.best_estimator_, name))
        return self

    def _base(self) -> Any:
        return GaussianMixture() if self.estimator is None else self.estimator

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self._base()).input_tags
        return tags

    def _held_out(self, base: Any, X: Any, numbers: list[int]) -> dict[int, float]:
        x_ND = X if isinstance(X, (np.ndarray, torch.Tensor)) else np.asarray(X)
        if x_ND.ndim != 2:
            raise ValueError("criterion='cv' got files; expected rows in memory. Choose bic, aic, icl or slope.")
        splits = list(KFold(self.folds, shuffle=True, random_state=self.random_state).split(np.empty((len(x_ND), 1))))
        found = {k: np.array([clone(base).set_params(n_components=k).fit(x_ND[train]).score(x_ND[test])
                              for train, test in splits]) for k in numbers}
        self.standard_errors_ = {k: float(v.std(ddof=1) / np.sqrt(len(v))) for k, v in found.items()}
        return {k: -float(v.mean()) for k, v in found.items()}

    def predict(self, X: Any) -> Any:
        """Labels by the chosen mixture (N,)."""
        check_is_fitted(self)
        return self.best_estimator_.predict(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density by the chosen mixture, in nats."""
        check_is_fitted(self)
        return self.best_estimator_.score(X)


def _count(model: Any, X: Any) -> int:
    return model._count(X) if hasattr(model, "_count") else len(X)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three groups on a line."""
    centres_N1 = torch.tensor([[-6.0], [0.0], [6.0]], dtype=torch.float64).repeat_interleave(40, 0)
    x_N1 = centres_N1 + torch.randn(120, 1, generator=generator, dtype=torch.float64)
    return {"estimator": ComponentSearch(GaussianMixture(random_state=0), range(1, 6)), "X": x_N1.numpy()}
