"""Skew-normal mixture: scipy's density and fit, a step in loops, units, one population, draws."""

import numpy as np
import pytest
import scipy.stats as st
from scipy.stats import norm

from mixwell.density import GaussianMixture, SkewNormalMixture
from tests.density.mixtures._columns import check_one_population, joint
from tests.density.mixtures._tools import continued, softmax

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def log(x, location, scale, skew):
    return st.skewnorm.logpdf(x, skew, location, scale)


def groups():
    one = st.skewnorm.rvs([4, -2], [0, 2], [2, 3], size=(60, 2), random_state=0)
    other = st.skewnorm.rvs([2, 5], [9, -4], [1, 2], size=(60, 2), random_state=1)
    return np.vstack([one, other])


def test_a_step_agrees_with_loops():
    """Least squares of the values on one and the hidden part, row by row."""
    x = groups()
    x[3, 1] = np.nan
    model = SkewNormalMixture(2, random_state=0, max_iter=3, tol=0).fit(x)
    together = joint(model, x, log)
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(together, 1), rtol=1e-8)
    r, seen = softmax(together), ~np.isnan(x)
    old = {name: getattr(model, name).copy() for name in ("locations_", "scales_", "skews_")}
    continued(model, x)
    for k in range(2):
        for d in range(2):
            w, v = r[seen[:, d], k], x[seen[:, d], d]
            location, slope, rest = step(w, v, *(value[k, d] for value in old.values()))
            ours = model.locations_[k, d], model.scales_[k, d], model.skews_[k, d]
            assert ours == pytest.approx((location, np.sqrt(rest + slope**2), slope / np.sqrt(rest)), rel=1e-6)


def step(w, x, location, scale, skew):
    slope, rest = scale * skew / np.sqrt(1 + skew**2), scale**2 / (1 + skew**2)
    gram, target, total = np.zeros((2, 2)), np.zeros(2), 0.0
    for weight, value in zip(w, x):
        m, s = slope * (value - location) / scale**2, np.sqrt(rest) / scale
        h = norm.pdf(m / s) / norm.cdf(m / s)
        u, uu = m + s * h, m**2 + s**2 + m * s * h
        gram += weight * np.array([[1, u], [u, uu]])
        target += weight * np.array([value, value * u])
        total += weight * value**2
    found = np.linalg.solve(gram, target)
    return *found, (total - target @ found) / w.sum()


def test_one_population_is_one_component_and_scipys_fit():
    x = st.skewnorm.rvs([4, -2], [1000, 2], [2, 3], size=(400, 2), random_state=1)
    model = check_one_population(SkewNormalMixture, x)
    assert np.diff(model.lower_bounds_).min() > -1e-10
    best = sum(log(x[:, d], *np.roll(st.skewnorm.fit(x[:, d]), -1)).sum() for d in range(2))
    assert model.score(x) * len(x) > best - 0.3
    gauss = [GaussianMixture(k, covariance_type="diag", random_state=0).fit(x).bic(x) for k in (1, 2, 3)]
    assert model.bic(x) < min(gauss)


def test_units_do_not_count():
    x = groups()
    one = SkewNormalMixture(2, random_state=0, reg_covar=1e-9).fit(x)
    other = SkewNormalMixture(2, random_state=0, reg_covar=1e-9).fit(1e4 + 32 * x)
    np.testing.assert_allclose(other.skews_, one.skews_, rtol=1e-6)
    np.testing.assert_allclose(other.scales_, 32 * one.scales_, rtol=1e-6)
    np.testing.assert_allclose(other.locations_, 1e4 + 32 * one.locations_, rtol=1e-6)


def test_far_values_have_finite_densities_and_draws_the_moments():
    model = SkewNormalMixture(1, tol=1e-7, max_iter=500).fit(groups()[:60])
    far = np.array([[-30.0, 30.0], [40.0, -40.0]])
    np.testing.assert_allclose(model.score_samples(far), [joint(model, far[[n]], log)[0, 0] for n in (0, 1)], rtol=1e-6)
    drawn, _ = model.sample(20_000)
    mean = model.locations_ + np.sqrt(2 / np.pi) * model.scales_ * model.skews_ / np.sqrt(1 + model.skews_**2)
    np.testing.assert_allclose(drawn.mean(0), mean[0], atol=0.08)


def test_held_locations_stay_and_the_rest_climbs():
    x = groups()
    model = SkewNormalMixture(2, random_state=0, max_iter=3).fit(x)
    before = model.locations_.copy()
    model.set_params(warm_start=True, max_iter=8, tol=0, fixed="locations").fit(x)
    np.testing.assert_allclose(model.locations_, before, rtol=1e-12)
    assert np.diff(model.lower_bounds_).min() > -1e-10 and model._n_parameters() == 9


def test_equal_values_keep_the_least_variance():
    x = np.vstack([np.full((20, 1), 0.3), np.random.default_rng(0).normal(size=(40, 1))])
    model = SkewNormalMixture(2, random_state=0, reg_covar=1e-4, max_iter=200).fit(x)
    assert (model.scales_**2 / (1 + model.skews_**2)).min() >= 1e-4 * (1 - 1e-9)
