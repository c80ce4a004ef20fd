"""The lasso mixture against brute force, its exact zeros, and its limits."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime, minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import Lasso

from mixwell.density.regression.lasso import (
    LassoExperts,
    LassoMixtureOfExperts,
    example,
    shrink,
    thresholded_ascent,
)
from tests.density.regression._loops import dot, gaussian_posterior, standardised

RNG = np.random.default_rng(1)
X = RNG.normal(size=(120, 6))
Y = np.where(X[:, 0] > 0, 2 * X[:, 1], -2 * X[:, 1]) + 0.3 * RNG.normal(size=120)


pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_shrinking_is_the_proximal_map_of_the_l1_norm():
    grid = np.linspace(-3, 3, 60001)
    for v in (-2.0, -0.3, 0.0, 0.7, 1.9):
        best = grid[np.argmin(0.5 * (grid - v) ** 2 + 0.6 * np.abs(grid))]
        assert abs(shrink(np.array(v), 0.6) - best) < 1e-4


def test_likelihood_and_penalty_agree_with_a_loop():
    model = LassoMixtureOfExperts(penalty=0.03, max_iter=1, random_state=0).fit(X, Y)
    later = LassoMixtureOfExperts(penalty=0.03, max_iter=2, random_state=0).fit(X, Y)
    total, resp = gaussian_posterior(standardised(X).tolist(), Y, model.gate_coef_, model.coef_[..., 0],
                                     model.covariances_[:, 0, 0])
    np.testing.assert_allclose(model.log_likelihood(X, Y).sum(), total, rtol=1e-10)
    np.testing.assert_allclose(model.responsibilities(X, Y), resp, atol=1e-10)
    l1 = sum(abs(v) for w in (model.gate_coef_, model.coef_[..., 0]) for row in w for v in row[1:])
    np.testing.assert_allclose(later.lower_bounds_[1], total / 120 - 0.03 * l1, rtol=1e-10)


def test_ascent_finds_the_optimum_of_the_gates():
    design, resp = np.column_stack([np.ones(120), X]), RNG.dirichlet([1, 1], 120)

    def value(w):
        return float((resp * log_softmax(design @ w.T, axis=1)).sum())

    def gradient(w):
        return (resp - softmax(design @ w.T, axis=1)).T @ design

    w = RNG.normal(size=(2, 7))
    np.testing.assert_allclose(gradient(w).ravel(), approx_fprime(w.ravel(), lambda v: value(v.reshape(2, 7)), 1e-7),
                               atol=1e-3)
    strength = np.full((2, 7), 4.0)
    strength[:, 0] = 0
    curvature = 0.5 * np.linalg.norm(design.T @ design, 2)
    found = thresholded_ascent(value, gradient, np.zeros((2, 7)), strength, curvature, 400)
    split = minimize(lambda v: -value((v[:14] - v[14:]).reshape(2, 7)) + strength.ravel() @ (v[:14] + v[14:]),
                     np.full(28, 0.1), bounds=[(0, None)] * 28, method="L-BFGS-B").fun
    reached = -value(found) + float((strength * np.abs(found)).sum())
    assert reached <= split + 1e-4


def test_ascent_takes_nesterovs_steps():
    root = RNG.normal(size=(5, 5))
    square, pull = root @ root.T + np.eye(5), 10 * RNG.normal(size=5)
    top = np.linalg.eigvalsh(square)[-1]
    penalty = np.full(5, 0.3)
    found = thresholded_ascent(lambda w: float(pull @ w - 0.5 * w @ square @ w), lambda w: pull - square @ w,
                               np.zeros(5), penalty, top, 4)
    before, ahead, t = np.zeros(5), np.zeros(5), 1.0
    for _ in range(4):
        moved = ahead + (pull - square @ ahead) / top
        now = np.array([math.copysign(max(abs(v) - 0.3 / top, 0), v) for v in moved])
        after = (1 + math.sqrt(1 + 4 * t * t)) / 2
        ahead, before, t = now + (t - 1) / after * (now - before), now, after
    np.testing.assert_allclose(found, before, atol=1e-12)


def test_experts_begin_as_ridge_regressions_with_their_residuals_variance():
    resp, design = RNG.dirichlet([1, 1], 120), np.column_stack([np.ones(120), X])
    found = LassoExperts(1e-9, ((0,),), strength=1.0)._dense(design, Y[:, None], resp)
    for k in range(2):
        w = resp[:, k]
        coef = np.linalg.solve(design.T @ np.diag(w) @ design + 0.1 * w.sum() * np.eye(7), design.T @ (w * Y))
        np.testing.assert_allclose(found["coef"][k, :, 0], coef, atol=1e-10)
        rest = [y - dot(coef, h) for y, h in zip(Y, design)]
        assert found["covariances"][k, 0, 0] == pytest.approx(np.average(np.square(rest), weights=w))


def test_one_expert_is_the_lasso():
    model = LassoMixtureOfExperts(n_experts=1, penalty=0.1, inner_steps=200, tol=1e-12, max_iter=500).fit(X, Y)
    variance = model.covariances_[0, 0, 0]
    trusted = Lasso(alpha=0.1 * variance, tol=1e-10).fit(standardised(X), Y)  # their loss is not over the variance
    np.testing.assert_allclose(model.coef_[0, 1:, 0], trusted.coef_, atol=1e-5)
    np.testing.assert_allclose(model.coef_[0, 0, 0], trusted.intercept_, atol=1e-6)


def test_penalised_likelihood_never_falls_whatever_the_inner_steps():
    for steps in (1, 20):
        model = LassoMixtureOfExperts(penalty=0.02, inner_steps=steps, max_iter=40, tol=0.0, random_state=0)
        assert np.diff(model.fit(X, Y).lower_bounds_).min() >= -1e-12


def test_columns_that_do_not_matter_get_exact_zeros():
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(150, 40))
    y = np.where(wide[:, 0] > 0, 3 + 3 * wide[:, 1], -3 - 2 * wide[:, 2]) + rng.normal(size=150)
    model = LassoMixtureOfExperts(penalty=0.1, random_state=0, init="random", tol=1e-4).fit(wide, y)
    assert model.support_[:3].all() and model.support_.sum() <= 14
    loose = LassoMixtureOfExperts(penalty=0.0, random_state=0, max_iter=20, tol=1e-3).fit(wide, y)
    assert loose.support_.all() and loose.n_parameters() > model.n_parameters()


def test_a_huge_penalty_leaves_intercepts_alone():
    model = LassoMixtureOfExperts(penalty=100.0, random_state=0, tol=1e-3).fit(X, Y)
    assert not model.support_.any()
    np.testing.assert_allclose(model.predict(X), model.predict(X)[0])
    assert model.n_parameters() == 1 + 2 + 2 and math.isfinite(model.bic(X, Y))


def test_refuses():
    with pytest.raises(ValueError, match="penalty is -1"):
        LassoMixtureOfExperts(penalty=-1).fit(X, Y)
    with pytest.raises(ValueError, match="inner_steps is 0"):
        LassoMixtureOfExperts(inner_steps=0).fit(X, Y)
    with pytest.raises(ValueError, match="1d array"):
        LassoMixtureOfExperts().fit(X, np.column_stack([Y, Y]))


def test_example_runs():
    made = example(torch.Generator().manual_seed(0))
    model = made["estimator"].fit(made["X"], made["y"])
    assert model.support_[0] and model.score(made["X"], made["y"]) > 0.8


def test_no_variance_falls_below_its_floor():
    inputs = example(torch.Generator().manual_seed(0))
    model = inputs.pop("estimator").set_params(reg_covar=2.0, max_iter=3).fit(**inputs)
    np.testing.assert_allclose(model.covariances_, 2 * np.var(inputs["y"]), rtol=1e-6)


def test_more_starts_keep_the_best_of_them():
    inputs = example(torch.Generator().manual_seed(0))
    model = inputs.pop("estimator").set_params(max_iter=5, init="random")
    one, many = (model.set_params(n_init=n).fit(**inputs).lower_bounds_[-1] for n in (1, 4))
    assert many >= one
