"""Weibull mixture: a step in loops, scipy's fits with and without censoring, one population, zeros, collapse."""

import numpy as np
import pytest
import scipy.stats as st

from mixwell.density import WeibullMixture
from mixwell.density.mixtures.em import rows
from tests.density.mixtures._columns import check_collapse, check_held, check_one_population, check_zeros, joint

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def log(x, shape, scale):
    return st.weibull_min.logpdf(x, shape, scale=scale)


def groups():
    rng = np.random.default_rng(0)
    return rng.weibull([[2, 4]] * 60 + [[3, 2]] * 60, (120, 2)) * ([[1, 30]] * 60 + [[15, 3]] * 60)


def one_population():
    rng = np.random.default_rng(0)
    return rng.weibull((2.0, 0.7), (500, 2)) * (3.0, 1.0)


def test_densities_agree_with_loops():
    x = groups()
    x[3, 1] = np.nan
    model = WeibullMixture(2, random_state=0).fit(x)
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(joint(model, x, log), 1), rtol=1e-9)


def test_censored_lifetimes_agree_with_scipys_fit():
    x = one_population()
    limit = np.random.default_rng(1).exponential(4, x.shape)
    censored = x > limit
    x = np.minimum(x, limit)
    model = WeibullMixture(1, tol=1e-12).fit(x, censored=censored)
    plain = WeibullMixture(1, tol=1e-12).fit(x)
    total = 0.0
    for d in range(2):
        data = st.CensoredData.right_censored(x[:, d], censored[:, d])
        shape, _, scale = st.weibull_min.fit(data, floc=0)
        assert (model.shapes_[0, d], model.scales_[0, d]) == pytest.approx((shape, scale), rel=1e-3)
        total += st.weibull_min.logpdf(x[~censored[:, d], d], shape, 0, scale).sum()
        total += st.weibull_min.logsf(x[censored[:, d], d], shape, 0, scale).sum()
        assert plain.scales_[0, d] < 0.8 * scale  # what forgets the censoring
    assert model.lower_bound_ * len(x) == pytest.approx(total, abs=1e-5)
    two = WeibullMixture(2, tol=0, max_iter=30, random_state=0).fit(x, censored=censored)
    assert np.diff(two.lower_bounds_).min() > -1e-10


def test_censoring_belongs_to_its_rows_where_an_array_is_read_in_parts(monkeypatch):
    monkeypatch.setattr(rows, "READ_ROWS", 50)
    x = one_population()
    censored = (x > 2) & (np.arange(500) < 300)[:, None]
    x[censored] = 2.0
    whole = WeibullMixture(1).fit(x, censored=censored)
    x.setflags(write=False)  # such an array is copied a part at a time
    parts = WeibullMixture(1).fit(x, censored=censored)
    np.testing.assert_allclose(parts.scales_, whole.scales_, rtol=1e-9)
    np.testing.assert_allclose(parts.shapes_, whole.shapes_, rtol=1e-9)


def test_censoring_of_another_shape_is_refused():
    x = groups()
    with pytest.raises(ValueError, match=r"censored has shape \(120,\); expected \(120, 2\)"):
        WeibullMixture(1).fit(x, censored=np.zeros(120, bool))
    one = WeibullMixture(1).fit(x[:, :1], censored=np.zeros(120, bool))
    np.testing.assert_array_equal(one.shapes_, WeibullMixture(1).fit(x[:, :1]).shapes_)


def test_one_component_is_scipys_fit():
    x = one_population()
    model = WeibullMixture(1, tol=1e-12).fit(x)
    for d in range(2):
        shape, _, scale = st.weibull_min.fit(x[:, d], floc=0)
        assert (model.shapes_[0, d], model.scales_[0, d]) == pytest.approx((shape, scale), rel=1e-3)
    with pytest.raises(ValueError, match="WeibullMixture has no online EM"):
        WeibullMixture(1, batch_size=10).fit(x)


def test_one_population_is_one_component():
    check_one_population(WeibullMixture, one_population())


def test_held_parameters_stay_and_are_not_counted():
    check_held(WeibullMixture, groups(), ("weights", "shapes", "scales"))


def test_zeros_and_equal_values():
    check_zeros(WeibullMixture, groups())
    check_collapse(WeibullMixture, 1e-3)


def test_a_row_far_above_a_narrow_group_weighs_nothing_in_it():
    """Its power there is beyond all numbers, and its share is 0: the product must be 0, not nothing."""
    rng = np.random.default_rng(0)
    x = np.concatenate([1e-6 * (1 + 0.01 * rng.random(30)), 5 * rng.weibull(1.0, 70)])[:, None]
    model = WeibullMixture(2, random_state=0).fit(x)
    assert np.sort(model.weights_) == pytest.approx([0.3, 0.7], abs=1e-3)
    assert np.diff(model.lower_bounds_).min() > -1e-10
