"""Mixture at the posterior's mode: any mixture, with a prior that is worth some rows of the whole table.

**Equation:** maximise sum_n log p(x_n) + (a / N) sum_k sum_n log(w_k p_k(x_n)), a being `prior_rows`. M step: the
family's own, with r_nk + a / N for r_nk, so that w_k = (n_k + a) / (N + K a), a category's share in component k is
(n_kc + a m_c) / (n_k + a) with m_c its share of the table, a Poisson rate (s_k + a m) / (n_k + a) with m the mean, and
a Gaussian's mean and covariance are those of its rows and of a rows like the whole table.

**Shapes:** X (N, D) as the estimator takes it; `estimator_` is the fitted mixture, `weights_` (K,).

**Reference:** Galindo Garre, Vermunt (2006), Avoiding Boundary Estimates in Latent Class Analysis by Bayesian Posterior
Mode Estimation; Clogg, Rubin, Schenker, Schultz, Weidman (1991), Multiple Imputation of Industry and Occupation Codes
in Census Public-use Samples Using Bayesian Logistic Regression (pseudo-rows that follow the table's margins).

**Differs:** for exponential families this is the conjugate prior (Dirichlet, gamma, normal and inverse Wishart) whose
mode is the fit of one component; others get the same rows, whose logarithms are their prior. The papers spread
pseudo-counts over the margins of categories alone. `GaussianMixture(shrinkage=)` has mclust's priors instead.

**Fails when:** groups are small beside a: they are drawn towards the whole table. Student's degrees of freedom see the
prior's rows as far ones.

**Cost:** one sum a step beside the estimator's own.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from sklearn.base import BaseEstimator, DensityMixin, clone
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._options import Configured
from mixwell.density.mixtures._parts import MixtureEstimator
from mixwell.density.mixtures.categorical import CategoricalMixture
from mixwell.density.mixtures.em.loop import Family
from mixwell.density.mixtures.em.rows import Rows
from mixwell.density.mixtures.em.smoothed import Smoothed
from mixwell.density.mixtures.em.variational import Variational
from mixwell.density.mixtures.gaussian import GaussianMixture

FITTED = ("weights_", "converged_", "n_iter_", "lower_bound_", "lower_bounds_", "n_features_in_", "feature_names_in_")


@dataclass(frozen=True)
class Config:
    """Options of the mode; `ValueError` for one out of range."""

    estimator: Any = None  # a mixture without priors of its own; None: a Gaussian one
    _: KW_ONLY
    prior_rows: float = 1.0  # rows of the whole table that every component has seen beside its own; 0: likelihood

    def __post_init__(self) -> None:
        if not 0 <= self.prior_rows < math.inf:
            raise ValueError(f"prior_rows={self.prior_rows}; expected a number of rows from 0 on.")
        if self.estimator is None:
            return
        if not isinstance(self.estimator, MixtureEstimator):
            raise ValueError(f"estimator is {type(self.estimator).__name__}; expected a mixture such as "
                             "GaussianMixture(2) or CategoricalMixture(2).")
        if self.estimator.batch_size is not None:
            raise ValueError("the estimator has batch_size, and online EM climbs no posterior; leave it None.")


@method(title="Mixture at the posterior's mode", year=2006, tags={"estimator", "em", "responsibilities", "sklearn"})
class PriorMixture(DensityMixin, Configured, BaseEstimator, config=Config):
    """Any mixture, fitted with a prior worth `prior_rows` rows; the fitted mixture is `estimator_`, with all it can do.

    `lower_bounds_` are the posterior's, in nats a row, up to a constant.
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> PriorMixture:
        """Estimate from X (N, D), rows weighted by `sample_weight` (N,); returns self, raises as the estimator does."""
        config = self._config()
        fitted = clone(self._base())
        build = fitted._build_family
        # for this fit alone: what is kept is the mixture itself
        fitted._build_family = lambda rows, weights_N: _with_prior(build(rows, weights_N), rows, weights_N,
                                                                   config.prior_rows)
        try:
            fitted.fit(X, sample_weight=sample_weight)
        finally:
            del fitted._build_family
        self.estimator_ = fitted
        for name in FITTED:
            if hasattr(fitted, name):
                value = getattr(fitted, name)
                setattr(self, name, value)
        return self

    def _base(self) -> Any:
        return GaussianMixture() if self.estimator is None else self.estimator

    def _fitted(self) -> Any:
        check_is_fitted(self)
        return self.estimator_

    def predict(self, X: Any) -> Any:
        """The most probable component of every row (N,); an error before `fit`."""
        return self._fitted().predict(X)

    def predict_proba(self, X: Any) -> Any:
        """Responsibilities (N, K); an error before `fit`."""
        return self._fitted().predict_proba(X)

    def score_samples(self, X: Any) -> Any:
        """Log density of every row (N,), in nats, without the prior; an error before `fit`."""
        return self._fitted().score_samples(X)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Mean log density of the rows, in nats; an error before `fit`."""
        return float(self._fitted().score(X, sample_weight=sample_weight))

    def sample(self, n_samples: int = 1) -> tuple[Any, Any]:
        """Rows drawn from the mixture, and their components; raises as the estimator does."""
        rows, labels = self._fitted().sample(n_samples)
        return rows, labels

    def bic(self, X: Any, sample_weight: Any = None) -> float:
        """Bayesian information criterion of the likelihood at the mode (Fraley and Raftery's way); lower is better."""
        return float(self._fitted().bic(X, sample_weight=sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self._base()).input_tags
        return tags


def _with_prior(family: Family, rows: Rows, weights_N: Tensor | None, prior_rows: float) -> Family:
    """The family with a prior of so many rows; a `ValueError` where it has posteriors of another kind."""
    if isinstance(family, Variational):
        raise ValueError("the estimator has posteriors of its own; expected a mixture without them, such as "
                         "GaussianMixture(2).")
    total = float(rows.n_rows) if weights_N is None else float(weights_N.sum())
    return Smoothed(family, prior_rows / total)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three columns of categories from two classes, few rows."""
    likely_2D = torch.tensor([[0.95, 0.9, 0.9], [0.05, 0.1, 0.2]])
    likely_ND = likely_2D.repeat_interleave(20, 0)
    draw_ND = torch.rand(40, 3, generator=generator)
    x_ND = (draw_ND < likely_ND).double()
    return {"estimator": PriorMixture(CategoricalMixture(2, random_state=0)), "X": x_ND.numpy()}
