"""Mixture of any components: an EM step in loops, different kinds, the Gaussian mixture as a case, refusals."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KernelDensity

from mixwell.density import GaussianMixture, Mixture
from tests.density.mixtures._tools import softmax

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


class Exponential:
    """A component that is no estimator of the library."""

    def __init__(self, rate=None):
        self.rate = rate

    def fit(self, X, sample_weight):
        self.rate = sample_weight.sum() / (sample_weight @ X[:, 0])
        return self

    def log_prob(self, X):
        return np.where(X[:, 0] >= 0, np.log(self.rate) - self.rate * X[:, 0], -np.inf)

    def sample(self, n):
        return np.full((n, 1), 1 / self.rate)


class Stubborn(Exponential):
    """A component whose fit makes it worse."""

    def fit(self, X, sample_weight):
        self.rate = 3 * (self.rate or 1.0)
        return self


class Normal:
    """A normal distribution of one column."""

    def fit(self, X, sample_weight):
        self.mean = np.average(X[:, 0], weights=sample_weight)
        self.variance = np.average((X[:, 0] - self.mean) ** 2, weights=sample_weight)
        return self

    def score_samples(self, X):
        return -0.5 * (np.log(2 * np.pi * self.variance) + (X[:, 0] - self.mean) ** 2 / self.variance)


def test_steps_agree_with_loops():
    rng = np.random.default_rng(0)
    x = np.r_[rng.exponential(1.0, 60), rng.exponential(8.0, 60)][:, None]
    weights = rng.random(120)
    model = Mixture([Exponential(2.0), Exponential(0.2)], init="given", max_iter=3, tol=0).fit(
        x, sample_weight=weights)
    w, rates, bounds = np.array([0.5, 0.5]), np.array([2.0, 0.2]), []
    for _ in range(3):
        joint = np.array([[np.log(w[k]) + np.log(rates[k]) - rates[k] * v for k in range(2)] for v in x[:, 0]])
        bounds.append(weights @ np.logaddexp.reduce(joint, 1) / weights.sum())
        r = softmax(joint) * weights[:, None]
        w, rates = r.sum(0) / weights.sum(), r.sum(0) / (r.T @ x[:, 0])
    np.testing.assert_allclose([c.rate for c in model.components_], rates, rtol=1e-10)
    np.testing.assert_allclose(model.weights_, w, rtol=1e-10)
    np.testing.assert_allclose(model.lower_bounds_, bounds, rtol=1e-10)


def test_different_components_find_their_rows():
    rng = np.random.default_rng(0)
    x = np.r_[rng.exponential(1.0, 400), rng.normal(12, 1, 600)][:, None]
    given = Exponential()
    model = Mixture([GaussianMixture(1), given], random_state=0, tol=1e-8).fit(x)
    assert given.rate is None
    assert model.components_[1].rate == pytest.approx(1 / x[:400].mean(), rel=0.02)
    np.testing.assert_allclose(model.weights_, [0.6, 0.4], atol=0.01)
    assert np.diff(model.lower_bounds_).min() > -1e-9
    assert model.sample(10)[0].shape == (10, 1)


def test_gaussian_components_are_the_gaussian_mixture():
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(-3, 1, (100, 2)), rng.normal(3, 1, (100, 2))]
    model = Mixture([GaussianMixture(1), GaussianMixture(1)], random_state=0, tol=1e-10).fit(x)
    assert model.score(x) == pytest.approx(GaussianMixture(2, random_state=0, tol=1e-10).fit(x).score(x), abs=1e-6)


def test_missing_values_where_every_component_takes_them():
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(-4, 1, (100, 2)), rng.normal(4, 1, (100, 2))]
    x[rng.random(x.shape) < 0.2] = np.nan
    given = {"tol": 1e-9, "max_iter": 400}
    model = Mixture([GaussianMixture(1, **given), GaussianMixture(1, **given)], random_state=0, tol=1e-9).fit(x)
    whole = GaussianMixture(2, random_state=0, **given).fit(x)
    assert model.score(x) == pytest.approx(whole.score(x), abs=1e-5)
    with pytest.raises(ValueError, match="contains NaN"):
        Mixture([GaussianMixture(1), Normal()]).fit(x)


def test_more_starts_are_never_worse():
    x = np.random.default_rng(3).normal(size=(60, 1)) * np.repeat([[0.2], [1.0], [3.0]], 20, axis=0)
    one, many = (Mixture([Normal()] * 4, n_init=n, max_iter=10, random_state=1).fit(x) for n in (1, 4))
    assert many.lower_bound_ > one.lower_bound_ + 1e-6


def test_rows_that_no_component_reaches():
    x = np.array([[1.0], [2.0], [-1.0], [3.0]])
    with pytest.raises(ValueError, match="row 2 has no density under any component"):
        Mixture([Exponential(1.0), Exponential(2.0)], init="given").fit(x)
    model = Mixture([Exponential(1.0), Exponential(2.0)], init="given").fit(x, sample_weight=[1, 1, 0, 1])
    assert model.score_samples(x)[2] == -np.inf and np.isfinite(model.score_samples(x)[[0, 1, 3]]).all()
    np.testing.assert_allclose(model.predict_proba(x).sum(1), 1)


def test_a_fit_that_is_not_maximum_likelihood_is_said():
    x = np.random.default_rng(0).exponential(1.0, (50, 1))
    with pytest.warns(UserWarning, match="the likelihood fell by .*not weighted maximum likelihood"):
        Mixture([Stubborn(1.0)], init="given", max_iter=3).fit(x)


def test_draws_of_components_are_independent_and_the_mixtures_state_decides_them():
    x = np.random.default_rng(0).normal(size=(200, 1)) + np.repeat([[0.0], [50.0]], 100, axis=0)
    for part in (GaussianMixture(1, random_state=0), GaussianMixture(1), KernelDensity()):
        model = Mixture([part, part], random_state=0, max_iter=2).fit(x)
        (drawn, labels), (again, _) = model.sample(400), model.sample(400)
        np.testing.assert_array_equal(drawn, again)
        n = np.bincount(labels).min()
        assert abs(np.corrcoef(drawn[labels == 0][:n, 0], drawn[labels == 1][:n, 0])[0, 1]) < 0.25
    model = Mixture([GaussianMixture(1, random_state=3)], random_state=0).fit(x)
    assert model.sample(3)[0].shape == (3, 1) and model.components_[0].random_state == 3


def test_refusals():
    x = np.random.default_rng(0).normal(size=(30, 1))
    with pytest.raises(ValueError, match="components is empty"):
        Mixture().fit(x)
    with pytest.raises(ValueError, match="no log_prob"):
        Mixture([object()]).fit(x)
    with pytest.raises(ValueError, match="init='x'"):
        Mixture([KernelDensity()], init="x").fit(x)
    with pytest.raises(ValueError, match=r"n_init=0, max_iter=100, tol=0.001; expected at least 1, 1 and 0"):
        Mixture([KernelDensity()], n_init=0).fit(x)
    with pytest.raises(ValueError, match="sample_weight must hold 30 numbers"):
        Mixture([KernelDensity()]).fit(x, sample_weight=-np.ones(30))
    with pytest.warns(ConvergenceWarning):
        model = Mixture([GaussianMixture(1), GaussianMixture(1)], max_iter=1, random_state=0).fit(x)
    with pytest.raises(ValueError, match="n_samples=0; expected at least 1"):
        model.sample(0)
