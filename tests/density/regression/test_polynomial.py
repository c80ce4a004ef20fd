"""Polynomial experts against loops, against ordinary regressions, and the trade of experts for degree."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, PoissonRegressor

from mixwell.density.regression.polynomial import PolynomialExperts, example
from tests.density.regression._loops import gaussian_posterior, standardised

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (150, 2))
Y = np.sin(2 * X[:, 0]) + 0.1 * RNG.normal(size=150)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("degree", [0, 1, 3])
def test_likelihood_and_an_em_step_agree_with_a_loop(degree):
    first = PolynomialExperts(n_experts=3, degree=degree, max_iter=1, random_state=0).fit(X, Y)
    then = PolynomialExperts(n_experts=3, degree=degree, max_iter=2, random_state=0).fit(X, Y)
    rows = standardised(X).tolist()
    total, resp = gaussian_posterior(rows, Y, first.gate_coef_, first.coef_[..., 0], first.covariances_[:, 0, 0],
                                     degree)
    np.testing.assert_allclose(first.log_likelihood(X, Y).sum(), total, rtol=1e-10)
    np.testing.assert_allclose(first.responsibilities(X, Y), resp, atol=1e-10)
    design = np.array([[1.0] + [v**p for p in range(1, degree + 1) for v in row] for row in rows])
    for k in range(3):
        root = np.sqrt(np.array(resp)[:, k])
        expected = np.linalg.lstsq(design * root[:, None], Y * root, rcond=None)[0]
        np.testing.assert_allclose(then.coef_[k, :, 0], expected, atol=1e-6)
        variance = np.average((Y - design @ expected) ** 2, weights=root**2)
        np.testing.assert_allclose(then.covariances_[k, 0, 0], variance, rtol=1e-6)


def test_em_never_descends_and_the_mean_is_the_gated_sum():
    model = PolynomialExperts(n_experts=3, random_state=0).fit(X, Y)
    assert np.diff(model.lower_bounds_).min() >= 0 and model.converged_
    by_hand = (model.predict_gates(X) * model.predict_experts(X)[..., 0]).sum(1)
    np.testing.assert_allclose(model.predict(X), by_hand)
    np.testing.assert_allclose(model.predict_gates(X).sum(1), 1)


def test_one_expert_is_ordinary_regression():
    model = PolynomialExperts(n_experts=1, degree=2).fit(X, Y)
    design = np.column_stack([np.ones(150), X, X**2])
    expected = design @ np.linalg.lstsq(design, Y, rcond=None)[0]
    np.testing.assert_allclose(model.predict(X), expected, atol=1e-8)


def test_one_poisson_expert_is_poisson_regression():
    y = RNG.poisson(np.exp(0.5 * X[:, 0] + 0.2))
    model = PolynomialExperts(n_experts=1, family="poisson", ridge=0.0).fit(X, y)
    trusted = PoissonRegressor(alpha=0.0, tol=1e-10).fit(X, y)
    np.testing.assert_allclose(model.predict(X), trusted.predict(X), rtol=1e-5)


def test_one_bernoulli_expert_is_logistic_regression():
    y = (RNG.random(150) < 1 / (1 + np.exp(-X[:, 0]))).astype(float)
    model = PolynomialExperts(n_experts=1, family="bernoulli", ridge=0.0).fit(X, y)
    trusted = LogisticRegression(C=1e10, tol=1e-10, max_iter=1000).fit(X, y)
    np.testing.assert_allclose(model.predict(X), trusted.predict_proba(X)[:, 1], atol=1e-4)


def test_more_constant_experts_and_one_of_a_higher_degree_both_bring_the_curve_nearer():
    x = np.linspace(-1, 1, 100)[:, None]
    y = x[:, 0] ** 2 + 0.05 * RNG.normal(size=100)

    def error(m, k):
        model = PolynomialExperts(n_experts=m, degree=k, random_state=0).fit(x, y)
        return np.mean((model.predict(x) - x[:, 0] ** 2) ** 2)

    assert error(4, 0) < 0.5 * error(2, 0) and error(1, 2) < 0.1 * error(4, 0) and error(2, 1) < 0.5 * error(1, 1)


@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_more_starts_are_no_worse(init):
    one = PolynomialExperts(n_experts=2, init=init, random_state=1, tol=1e-4).fit(X, Y)
    more = PolynomialExperts(n_experts=2, init=init, random_state=1, n_init=3, tol=1e-4).fit(X, Y)
    assert more.lower_bounds_[-1] >= one.lower_bounds_[-1]
    again = clone(one).fit(X, Y)
    assert np.array_equal(again.coef_, one.coef_)


def test_options_move_what_they_say():
    def separable(ridge):
        y = np.where(X[:, 0] > 0, X[:, 1], -X[:, 1])
        return np.abs(PolynomialExperts(ridge=ridge, reg_covar=1e-2, random_state=0).fit(X, y).gate_coef_[:, 1:]).max()

    assert separable(1e-3) > 2 * separable(1.0)
    wide = PolynomialExperts(reg_covar=0.5, random_state=0).fit(X, Y)
    np.testing.assert_allclose(wide.covariances_.min(), 0.5 * Y.var())


def test_several_responses_and_their_parameters_are_counted():
    model = PolynomialExperts(n_experts=2, random_state=0).fit(X, np.column_stack([Y, X[:, 0]]))
    assert model.predict(X).shape == (150, 2) and model.covariances_.shape == (2, 2, 2)
    assert model.n_parameters() == 3 + 2 * (3 * 2 + 3)
    expected = -2 * model.log_likelihood(X, np.column_stack([Y, X[:, 0]])).sum() + 21 * np.log(150)
    np.testing.assert_allclose(model.bic(X, np.column_stack([Y, X[:, 0]])), expected)


def test_refuses():
    with pytest.raises(ValueError, match="family 'poisson' takes counts"):
        PolynomialExperts(family="poisson").fit(X, Y)
    with pytest.raises(ValueError, match="zeros and ones"):
        PolynomialExperts(family="bernoulli").fit(X, np.arange(150))
    with pytest.raises(ValueError, match="degree is -1"):
        PolynomialExperts(degree=-1).fit(X, Y)
    with pytest.raises(ValueError, match="expected 'kmeans' or 'random'"):
        PolynomialExperts(init="best").fit(X, Y)
    with pytest.raises(ValueError, match="n_samples=3 is less than n_experts=5"):
        PolynomialExperts(n_experts=5).fit(X[:3], Y[:3])
    with pytest.raises(TypeError, match="degrees"):
        PolynomialExperts(degrees=2)


def test_example_runs():
    made = example(torch.Generator().manual_seed(0))
    assert made["estimator"].fit(made["X"], made["y"]).score(made["X"], made["y"]) > 0.9
