"""Gaussian mixture regression: conditional means in loops, least squares as the limit, draws, holes, refusals."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from mixwell.density import GaussianMixture, GaussianMixtureRegressor


def rows(N=200):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 6, (N, 2))
    y = np.column_stack([np.sin(x[:, 0]), x.sum(1) ** 2 / 10])
    return x, y + 0.1 * rng.normal(size=y.shape)


@pytest.mark.parametrize("kind", ["full", "tied", "VEV"])
def test_predictions_agree_with_loops(kind):
    x, y = rows()
    model = GaussianMixtureRegressor(GaussianMixture(3, covariance_type=kind, random_state=0)).fit(x, y)
    x = x[:7].copy()
    x[2, 0] = x[3] = np.nan
    np.testing.assert_allclose(model.predict(x), [loop(model.mixture_, row, 2) for row in x], rtol=1e-7)


def loop(mixture, x, D):
    """Mean of the targets given what there is of one row."""
    density = mixture.as_density()
    o, u = np.flatnonzero(~np.isnan(x)), np.arange(D, density.dim)
    total, mass = np.zeros(len(u)), 0.0
    parts = (value.numpy() for value in (density.weights_K, density.means_KD, density.covariances_KDD))
    for w, mean, covariance in zip(*parts):
        p, expected = w, mean[u]
        if len(o):
            p = w * multivariate_normal(mean[o], covariance[np.ix_(o, o)]).pdf(x[o])
            slope = covariance[np.ix_(u, o)] @ np.linalg.inv(covariance[np.ix_(o, o)])
            expected = mean[u] + slope @ (x[o] - mean[o])
        total, mass = total + p * expected, mass + p
    return total / mass


def test_one_component_is_least_squares():
    x, y = rows()
    model = GaussianMixtureRegressor(GaussianMixture(1, reg_covar=0)).fit(x, y[:, 0])
    design = np.column_stack([np.ones(len(x)), x])
    coefficients, *_ = np.linalg.lstsq(design, y[:, 0], rcond=None)
    np.testing.assert_allclose(model.predict(x), design @ coefficients, atol=1e-8)
    bent = GaussianMixtureRegressor(GaussianMixture(5, random_state=0)).fit(x, y[:, 0])
    assert bent.score(x, y[:, 0]) > 0.85 > model.score(x, y[:, 0]) + 0.1
    default = GaussianMixtureRegressor(n_components=4, random_state=0).fit(x, y[:, 0])
    assert default.score(x, y[:, 0]) > model.score(x, y[:, 0])


def test_draws_have_the_conditional_moments():
    x, y = rows()
    model = GaussianMixtureRegressor(GaussianMixture(3, random_state=0), random_state=0).fit(x, y)
    many = np.repeat(x[:1], 20_000, 0)
    drawn = model.sample_targets(many)
    np.testing.assert_allclose(drawn.mean(0), model.predict(x[:1])[0], atol=0.02)
    np.testing.assert_array_equal(model.sample_targets(many, 1), model.sample_targets(many, 1))
    assert not np.array_equal(drawn, model.sample_targets(many, 1))
    flat = GaussianMixtureRegressor(GaussianMixture(2, random_state=0)).fit(x, y[:, 1])
    assert flat.sample_targets(x, 0).shape == flat.predict(x).shape == (200,)


def test_holes_are_filled_and_weights_are_repetitions():
    x, y = rows()
    model = GaussianMixtureRegressor(GaussianMixture(3, random_state=0)).fit(x, y)
    table = np.hstack([x, y])
    table[:5, 2:] = np.nan
    full = model.impute(table)
    np.testing.assert_allclose(full[:5, 2:], model.predict(x[:5]))
    np.testing.assert_array_equal(full[5:], table[5:])
    with pytest.raises(ValueError, match=r"rows have shape \(200, 2\); expected \(N, 4\): the inputs"):
        model.impute(x)
    w = np.random.default_rng(0).integers(1, 4, 200)
    one = GaussianMixtureRegressor(GaussianMixture(1)).fit(x, y, sample_weight=w)
    other = GaussianMixtureRegressor(GaussianMixture(1)).fit(x.repeat(w, 0), y.repeat(w, 0))
    np.testing.assert_allclose(one.predict(x), other.predict(x), rtol=1e-9)
