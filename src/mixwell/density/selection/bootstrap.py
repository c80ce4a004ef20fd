"""Bootstrap of a mixture: standard errors and intervals of its parameters, and a likelihood ratio test of its size.

**Equation:** resample N rows with replacement (or draw N from the fitted mixture), fit again from the fitted
parameters, and name the components as the permutation says that brings the responsibilities of the data closest to the
fitted ones (Hungarian method). Standard errors are the deviations of the parameters over resamples, intervals their
quantiles. Test of K against K + 1 components: t = 2 (loglik_K+1 - loglik_K); B samples of N rows from the fit with K
give t_b, and p = (1 + #{t_b >= t}) / (B + 1).

**Shapes:** X (N, D); `standard_errors_` and `intervals_` by the name of each fitted attribute, in its shape, intervals
with an axis of (low, high) before it; `resampled_` with one of resamples.

**Reference:** Efron, Tibshirani (1993), An Introduction to the Bootstrap; McLachlan (1987), On Bootstrapping the
Likelihood Ratio Test Statistic for the Number of Components in a Normal Mixture; O'Hagan, Murphy, Scrucca, Gormley
(2019), Investigation of Parameter Uncertainty in Clustering Using a Gaussian Mixture Model Via Jackknife, Bootstrap and
Weighted Likelihood Bootstrap.

**Differs:** resampled rows are weights that count how often a row was drawn, so that nothing is copied.

**Fails when:** components overlap so much that no permutation stands out: errors then hold the labels' doubt, too; a
parameter lies on the edge of what it may be.

**Cost:** one fit a resample, from a start that is close; for the test, two a sample, from new starts.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, get_tags
from sklearn.utils.validation import check_is_fitted

from mixwell.core.method import method
from mixwell.density._options import Configured
from mixwell.density.mixtures.gaussian import GaussianMixture

Parameters = dict[str, np.ndarray]


@dataclass(frozen=True)
class Config:
    """Options of the bootstrap; `ValueError` for one out of range."""

    estimator: Any = None  # a mixture; None: a Gaussian one
    n_resamples: int = 200  # B
    kind: Literal["rows", "parametric"] = "rows"  # rows drawn again, or draws from the fitted mixture
    level: float = 0.95  # of the intervals
    test: bool = False  # whether to test the number of components against one more
    random_state: Any = None  # of the resamples

    def __post_init__(self) -> None:
        if self.n_resamples < 2 or not 0 < self.level < 1:
            raise ValueError(f"n_resamples={self.n_resamples}, level={self.level}; expected 2 or more, and a level "
                             "between 0 and 1.")
        if self.kind not in ("rows", "parametric"):
            raise ValueError(f"kind={self.kind!r}; expected 'rows' or 'parametric'.")


@method(title="Bootstrap of a mixture", year=1993, tags={"estimator", "sklearn"})
class MixtureBootstrap(Configured, BaseEstimator, config=Config):
    """Fits `estimator` and tells how sure its parameters are; options in `Config`.

    Fitted: `estimator_`, `standard_errors_`, `intervals_`, `resampled_`; with `test` also `statistic_`, `p_value_`.
    """

    def fit(self, X: Any, y: Any = None) -> MixtureBootstrap:
        """Fit, resample, fit again; returns self. Raises a `ValueError` as the estimator does."""
        config = self._config()
        rng = check_random_state(config.random_state)
        base = GaussianMixture() if config.estimator is None else config.estimator
        with _quiet():
            self.estimator_ = clone(base).fit(X)
            for name in ("n_features_in_", "feature_names_in_"):
                if hasattr(self.estimator_, name):
                    setattr(self, name, getattr(self.estimator_, name))
            found = [self._again(X, config, rng) for _ in range(config.n_resamples)]
            if config.test:
                self._test(base, X, config, rng)
        tail = (1 - config.level) / 2
        self.resampled_ = {name: np.stack([own[name] for own in found]) for name in found[0]}
        self.standard_errors_ = {}
        self.intervals_ = {}
        for name, values in self.resampled_.items():
            self.standard_errors_[name] = values.std(0, ddof=1)
            self.intervals_[name] = np.quantile(values, [tail, 1 - tail], axis=0)
        return self

    def _again(self, X: Any, config: Config, rng: np.random.RandomState) -> Parameters:
        """Parameters of one resample, components named as in the fit."""
        fitted = self.estimator_
        rows = len(X)
        again = _copy(fitted).set_params(warm_start=True)
        if config.kind == "rows":
            drawn = rng.randint(rows, size=rows)
            again.fit(X, sample_weight=np.bincount(drawn, minlength=rows))
        else:
            seed = int(rng.randint(np.iinfo(np.int32).max))
            drawn_ND, _ = _copy(fitted).set_params(random_state=seed).sample(rows)
            again.fit(drawn_ND)
        agreement_KK = fitted.predict_proba(X).T @ again.predict_proba(X)
        _, order = linear_sum_assignment(-_array(agreement_KK))
        return parameters(again, order)

    def _test(self, base: Any, X: Any, config: Config, rng: np.random.RandomState) -> None:
        """Statistic and p-value of K against K + 1 components."""
        self.statistic_ = _gain(base, X)
        draws = []
        for _ in range(config.n_resamples):
            seed = int(rng.randint(np.iinfo(np.int32).max))
            drawn_ND, _ = _copy(self.estimator_).set_params(random_state=seed).sample(len(X))
            draws.append(_gain(base, drawn_ND))
        beyond = sum(draw >= self.statistic_ for draw in draws)
        self.p_value_ = (1 + beyond) / (1 + len(draws))

    def predict(self, X: Any) -> Any:
        """Labels by the fitted mixture (N,); an error before `fit`."""
        check_is_fitted(self)
        return self.estimator_.predict(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density by the fitted mixture, in nats; an error before `fit`."""
        check_is_fitted(self)
        return self.estimator_.score(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        base = GaussianMixture() if self.estimator is None else self.estimator
        tags.input_tags = get_tags(base).input_tags
        return tags


def parameters(model: Any, order: np.ndarray) -> Parameters:
    """Fitted arrays with an axis of components, in another order of these, and those that all share."""
    K = len(order)
    names = ["weights_", *getattr(model, "_attributes", {}).values()]
    if hasattr(model, "covariances_"):
        names += ["means_", "covariances_", "dofs_"]
    found = {}
    for name in names:
        value = getattr(model, name, None)
        if isinstance(value, (np.ndarray, torch.Tensor)):
            value = _array(value)
            shared = name == "covariances_" and getattr(model, "_layout", "") == "tied"
            found[name] = value if shared or len(value) != K else value[order]
    return found


def _array(value: Any) -> np.ndarray:
    """An array, of a tensor too, which a fit to tensors leaves."""
    return torch.as_tensor(value).cpu().numpy()


def _gain(base: Any, X: Any) -> float:
    """Twice what one more component adds to the log-likelihood."""
    larger = base.n_components + 1
    fewer = clone(base).fit(X)
    more = clone(base).set_params(n_components=larger).fit(X)
    gain = more.score(X) - fewer.score(X)
    return 2 * len(X) * gain


def _copy(fitted: Any) -> Any:
    """A fitted estimator whose parameters and attributes may be set without changing the first."""
    other = clone(fitted)
    vars(other).update({name: value for name, value in vars(fitted).items() if name not in vars(other)})
    return other


class _quiet(warnings.catch_warnings):
    """Without warnings that a fit has not converged, of which there would be one a resample."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore", ConvergenceWarning)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups on a line."""
    centres_N1 = 5.0 * (torch.arange(100) % 2)[:, None]
    noise_N1 = torch.randn(100, 1, generator=generator, dtype=torch.float64)
    estimator = MixtureBootstrap(GaussianMixture(2, random_state=0), 20, random_state=0)
    return {"estimator": estimator, "X": (centres_N1 + noise_N1).numpy()}
