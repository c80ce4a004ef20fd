"""Poisson mixture: an EM step in loops, one component, columns without counts, refusals."""

import numpy as np
import pytest
import scipy.stats as st

from mixwell.density import PoissonMixture
from mixwell.density.mixtures.poisson import SMALLEST_RATE
from tests.density.mixtures._tools import continued, softmax

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def counts():
    return np.random.default_rng(0).poisson([[3, 9]] * 40 + [[9, 2]] * 40).astype(float)


def test_a_step_agrees_with_loops():
    x = counts()
    x[3, 1] = np.nan
    model = PoissonMixture(2, random_state=0, max_iter=1, tol=0).fit(x)
    joint = np.zeros((80, 2))
    for n, row in enumerate(x):
        for k in range(2):
            joint[n, k] = np.log(model.weights_[k]) + sum(
                st.poisson.logpmf(v, model.rates_[k, d]) for d, v in enumerate(row) if not np.isnan(v))
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(joint, 1), rtol=1e-9)
    r = softmax(joint)
    seen = ~np.isnan(x)
    continued(model, x)
    np.testing.assert_allclose(model.rates_, r.T @ np.where(seen, x, 0) / (r.T @ seen), rtol=1e-9)
    np.testing.assert_allclose(model.weights_, r.mean(0), rtol=1e-9)


def test_components_explain_more_variance_than_the_mean():
    """A Poisson's variance is its mean; a mixture's is larger by that of the rates."""
    x = counts()
    model = PoissonMixture(2, random_state=0).fit(x)
    mean = model.weights_ @ model.rates_
    variance = mean + model.weights_ @ (model.rates_ - mean) ** 2
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-2)
    np.testing.assert_allclose(variance, x.var(0), rtol=0.15)
    assert (variance > 1.5 * mean).all()


def test_one_component_is_the_mean_and_a_column_of_zeros_stays_finite():
    x = counts()
    x[:, 1] = 0
    model = PoissonMixture(1).fit(x)
    np.testing.assert_allclose(model.rates_[0], [x[:, 0].mean(), SMALLEST_RATE])
    assert np.isfinite(model.score(x))
    half = np.array([[2.5, 0.0]])
    expected = 2.5 * np.log(model.rates_[0, 0]) - model.rates_[0].sum() - np.log(3.323350970447843)  # Gamma(3.5)
    assert model.score_samples(half)[0] == pytest.approx(expected)


def test_held_parameters_stay():
    x = counts()
    model = PoissonMixture(2, random_state=0, max_iter=1).fit(x)
    w, rates = model.weights_.copy(), model.rates_.copy()
    continued(model, x, fixed="weights")
    np.testing.assert_array_equal(model.weights_, w)
    assert model._n_parameters() == 4 and np.abs(model.rates_ - rates).max() > 1e-6
    rates = model.rates_.copy()
    continued(model, x, fixed="rates")
    np.testing.assert_array_equal(model.rates_, rates)
    assert model._n_parameters() == 1 and np.abs(model.weights_ - w).max() > 1e-6


def test_negative_counts_are_refused():
    x = counts()
    x[5, 0] = -1
    with pytest.raises(ValueError, match="Negative values in data passed to PoissonMixture: row 5, column 0"):
        PoissonMixture().fit(x)


def test_rates_too_large_to_draw_from_are_said():
    huge = PoissonMixture(1).fit([[1e19], [3e19]])
    with pytest.raises(ValueError, match=r"a rate of 2e\+19 is too large to draw counts from"):
        huge.sample(2)
    with pytest.raises(ValueError, match=r"a rate of 1e\+19 is too large"):
        PoissonMixture(1).fit([[1e19], [1e19]]).sample(2)
    assert PoissonMixture(1).fit([[8e18], [1e19]]).sample(2)[0].min() > 8.9e18
