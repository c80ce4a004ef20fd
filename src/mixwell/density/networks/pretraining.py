"""Unsupervised pretraining: a latent-variable model from unlabelled rows, then a small predictor of its posterior.

**Equation:** stage one, maximum likelihood on m rows, phi^ = argmax_{phi in Phi} sum_i log p_phi(x_i); stage two, with
phi^ frozen, empirical risk on n labelled rows, psi^ = argmin_{psi in Psi} sum_j E_{z ~ p_phi^(z | x_j)} l(psi(z), y_j).
Excess risk is then of order sqrt(C_Phi / m) + sqrt(C_Psi / n) against sqrt(C_{Phi o Psi} / n) without stage one. For a
mixture and tables psi over its components with responsibilities r_jk: psi_k = argmax_c sum_j r_jk [y_j = c] (0-1
loss), psi_k = sum_j r_jk y_j / sum_j r_jk (squared loss).

**Shapes:** X (N, D) with y (N,), -1 (classification) or NaN where there is no label, and more rows without labels (M,
D); responsibilities (N, K); C classes.

**Reference:** Ge, Tang, Fan, Jin (2023), On the Provable Advantage of Unsupervised Pretraining, arXiv:2303.01566,
algorithm 1 and the examples of factor models and Gaussian mixtures.

**Differs:** written from the abstract and memory. Labelled rows join stage one (x only). A table predicts by the
expected vote of z, not by a draw; predictors other than the table see the posterior as features, so that the loss is
that of its mean. Contrastive learning, the third example, is an estimator of the user's with `transform`.

**Fails when:** the label does not depend on the latent variable (the paper's informative condition), or the likelihood
finds a poor optimum (raise the latent model's `n_init`).

**Cost:** one fit of the latent model on all rows; O(n K C) for a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import ClassifierTags, RegressorTags, check_array
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from mixwell.core.method import method
from mixwell.density._gaussian import Array
from mixwell.density._options import Configured
from mixwell.density.mixtures.gaussian import GaussianMixture


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of pretraining; `ValueError` for one out of range."""

    task: Literal["classification", "regression"] = "classification"
    latent: Any = None  # Phi: an estimator with predict_proba (used first) or transform; None: a Gaussian mixture
    n_components: int = 8  # K of the Gaussian mixture
    predictor: Any = "linear"  # Psi: "table" (of components), "linear" (logistic, ridge), or an estimator
    random_state: Any = None  # of the Gaussian mixture

    def __post_init__(self) -> None:
        if self.task not in ("classification", "regression"):
            raise ValueError(f"task is {self.task!r}; expected 'classification' or 'regression'")
        if self.n_components < 1:
            raise ValueError(f"n_components is {self.n_components}; expected 1 or more")
        named = isinstance(self.predictor, str)
        if named and self.predictor not in ("table", "linear"):
            raise ValueError(f"predictor is {self.predictor!r}; expected 'table', 'linear' or an estimator")


def posterior(latent: Any, x_ND: Array) -> Array:
    """Responsibilities (N, K) of a fitted latent model, or what it transforms rows to."""
    if hasattr(latent, "predict_proba"):
        features = latent.predict_proba(x_ND)
    else:
        features = latent.transform(x_ND)
    return np.asarray(features)


def component_means(resp_NK: Array, target_NC: Array) -> Array:
    """psi (K, C) of least expected squared loss; a component without rows has the mean of all."""
    mass_K1 = resp_NK.sum(0)[:, None]
    mean_KC = resp_NK.T @ target_NC / np.maximum(mass_K1, 1e-300)
    return np.where(mass_K1 > 0, mean_KC, target_NC.mean(0))


def component_votes(resp_NK: Array, onehot_NC: Array) -> Array:
    """psi (K, C) of least expected 0-1 loss: a one in the column of every component's class."""
    mean_KC = component_means(resp_NK, onehot_NC)
    winner_K = mean_KC.argmax(1)
    return np.eye(onehot_NC.shape[1])[winner_K]


class _Table(BaseEstimator):
    """A function of the component alone; predicts by its mean over the responsibilities."""

    def fit(self, resp_NK: Array, y: Array, classes: Array | None = None) -> _Table:
        sums_to_one = np.allclose(resp_NK.sum(1), 1, atol=1e-4)
        if not sums_to_one or (resp_NK < 0).any():
            raise ValueError("the latent model's features are no probabilities; predictor='table' expects those of "
                             "predict_proba; or choose 'linear'")
        self.classes_ = classes
        y_N1 = y[:, None]
        if classes is None:
            self.table_KC_ = component_means(resp_NK, y_N1)
        else:
            onehot_NC = (y_N1 == classes).astype(float)
            self.table_KC_ = component_votes(resp_NK, onehot_NC)
        return self

    def predict_proba(self, resp_NK: Array) -> Array:
        return resp_NK @ self.table_KC_

    def predict(self, resp_NK: Array) -> Array:
        value_NC = resp_NK @ self.table_KC_
        if self.classes_ is None:
            return value_NC[:, 0]
        return self.classes_[value_NC.argmax(1)]


def _has_probabilities(estimator: Any) -> bool:
    if estimator.task != "classification":
        return False
    given = getattr(estimator, "predictor_", estimator.predictor)
    return isinstance(given, str) or hasattr(given, "predict_proba")


@method(
    title="Unsupervised pretraining",
    paper="On the Provable Advantage of Unsupervised Pretraining",
    year=2023,
    tags={"estimator", "responsibilities", "sklearn"},
)
class PretrainedPredictor(Configured, BaseEstimator, config=Config):
    """Classifier or regressor on a latent posterior learnt without labels; see the module's card and `Config`.

    Fitted: `latent_`, `predictor_`, `n_labelled_`, `n_pretraining_` and, for classification, `classes_`.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        if self.task == "regression":
            tags.estimator_type = "regressor"
            tags.regressor_tags = RegressorTags()
        else:
            tags.estimator_type = "classifier"
            tags.classifier_tags = ClassifierTags()
        return tags

    def fit(self, X: Any, y: Any, X_unlabelled: Any = None) -> PretrainedPredictor:
        """Both stages on X (N, D) with y (N,) and, where given, rows without labels (M, D); returns self.

        `ValueError` where no row has a label, the latent model gives neither probabilities nor features, or a table is
        asked for and the features are no probabilities.
        """
        config = self._config()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        y, known_N = self._targets(X, y, config)
        rows = X
        if X_unlabelled is not None:
            further = validate_data(self, X_unlabelled, dtype=np.float64, reset=False)
            rows = np.concatenate([X, further])
        self.latent_ = _latent(config).fit(rows)
        if not hasattr(self.latent_, "predict_proba") and not hasattr(self.latent_, "transform"):
            raise ValueError(f"{type(self.latent_).__name__} has neither predict_proba nor transform; expected a "
                             "latent model with one of them")
        self.n_pretraining_ = len(rows)
        self.n_labelled_ = int(known_N.sum())
        features_NK = posterior(self.latent_, X[known_N])
        self.predictor_ = self._fit_predictor(features_NK, y[known_N], config)
        return self

    def _targets(self, X: Array, y: Any, config: Config) -> tuple[Array, Array]:
        """y (N,) and which of it are labels."""
        if y is None:
            raise ValueError("PretrainedPredictor requires y to be passed, but the target y is None; rows without "
                             "labels go to X_unlabelled")
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
        if config.task == "regression":
            y = check_array(y, dtype=np.float64, ensure_2d=False, ensure_all_finite="allow-nan", input_name="y")
            known_N = ~np.isnan(y)
        else:
            known_N = np.ones(len(y), dtype=bool)
            if y.dtype.kind in "if":
                known_N = y != -1
        if not known_N.any():
            raise ValueError("y holds no label; expected one or more")
        if config.task == "classification":
            check_classification_targets(y[known_N])
            self.classes_ = np.unique(y[known_N])
        return y, known_N

    def _fit_predictor(self, features_NK: Array, y: Array, config: Config) -> Any:
        classifies = config.task == "classification"
        if not isinstance(config.predictor, str):
            return clone(config.predictor).fit(features_NK, y)
        if config.predictor == "table":
            classes = self.classes_ if classifies else None
            return _Table().fit(features_NK, y, classes)
        linear: Any = LogisticRegression() if classifies else Ridge()
        return linear.fit(features_NK, y)

    def _features(self, X: Any) -> Array:
        check_is_fitted(self, "predictor_")
        x_ND = validate_data(self, X, dtype=np.float64, reset=False)
        return posterior(self.latent_, x_ND)

    def predict(self, X: Any) -> Array:
        """Classes or values (N,); an error before `fit` or for other columns."""
        features_NK = self._features(X)
        return np.asarray(self.predictor_.predict(features_NK))

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> Array:
        """Probabilities (N, C) in the order of `classes_`; errors as of `predict`."""
        features_NK = self._features(X)
        return np.asarray(self.predictor_.predict_proba(features_NK))

    def score(self, X: Any, y: Any) -> float:
        """Accuracy, or the share of variance explained; errors as of `predict`."""
        judge = r2_score if self.task == "regression" else accuracy_score
        predicted = self.predict(X)
        return float(judge(y, predicted))


def _latent(config: Config) -> Any:
    """The latent model before its fit."""
    if config.latent is not None:
        return clone(config.latent)
    return GaussianMixture(config.n_components, random_state=config.random_state)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups in the plane, of which every tenth row has a label."""
    index_N = torch.arange(100)
    group_N = index_N % 2
    noise_ND = torch.randn(100, 2, generator=generator, dtype=torch.float64)
    x_ND = 6.0 * group_N[:, None] + noise_ND
    labelled_N = index_N % 10 < 2
    y_N = torch.where(labelled_N, group_N, -1)
    return {
        "estimator": PretrainedPredictor(n_components=2, random_state=0),
        "X": x_ND.numpy(),
        "y": y_N.numpy(),
    }
