"""The weighted fits against trusted libraries, derivatives against differences, and their ascent."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression, PoissonRegressor

from mixwell.density._ascent import ascend
from mixwell.density.regression._fits import (
    _softmax_derivatives,
    least_squares,
    poisson_fit,
    raise_eigenvalues,
    softmax_fit,
    softmax_objective,
)
from mixwell.density.regression._parts import (
    GaussianExperts,
    GaussianGates,
    MultinomialExperts,
    PoissonExperts,
    Problem,
    SoftmaxGates,
    keep_dead,
    with_intercept,
)

RNG = np.random.default_rng(3)
X = with_intercept(RNG.normal(size=(80, 2)))
LABELS = RNG.integers(0, 3, 80)
WEIGHTS = RNG.uniform(0.1, 2, 80)
HOT = np.eye(3)[LABELS] * WEIGHTS[:, None]


def test_softmax_derivatives_are_those_of_the_objective():
    w = RNG.normal(size=(3, 3))
    gradient, hessian = _softmax_derivatives(X, HOT, w, 0.3)
    expected = approx_fprime(w.ravel(), lambda v: softmax_objective(X, HOT, v.reshape(3, 3), 0.3), 1e-7)
    np.testing.assert_allclose(gradient.ravel(), expected, atol=2e-4)
    second = approx_fprime(w.ravel(), lambda v: -_softmax_derivatives(X, HOT, v.reshape(3, 3), 0.3)[0].ravel(), 1e-7)
    np.testing.assert_allclose(hessian, second, atol=2e-4)


def test_softmax_fit_is_weighted_logistic_regression():
    found = softmax_fit(X, HOT, np.zeros((3, 3)), 0.5, steps=50)
    trusted = LogisticRegression(C=2.0, tol=1e-10, max_iter=1000).fit(X[:, 1:], LABELS, WEIGHTS)
    np.testing.assert_allclose(log_softmax(X @ found.T, axis=1), trusted.predict_log_proba(X[:, 1:]), atol=1e-5)
    np.testing.assert_allclose(found.sum(0), 0, atol=1e-12)


def test_softmax_fit_never_descends_from_a_bad_start():
    w = RNG.normal(size=(3, 3)) * 30
    values = [softmax_objective(X, HOT, w, 0.1)]
    for _ in range(5):
        w = softmax_fit(X, HOT, w, 0.1, steps=1)
        values.append(softmax_objective(X, HOT, w, 0.1))
    assert np.all(np.diff(values) >= 0) and values[-1] > values[0]


def test_poisson_fit_is_weighted_poisson_regression():
    y = RNG.poisson(np.exp(X @ [0.3, 0.5, -0.4]))
    found = poisson_fit(X, y, WEIGHTS, np.zeros(3), 1.0)
    trusted = PoissonRegressor(alpha=1.0 / WEIGHTS.sum(), tol=1e-10, max_iter=1000).fit(X[:, 1:], y, WEIGHTS)
    np.testing.assert_allclose(found, [trusted.intercept_, *trusted.coef_], atol=1e-5)


def test_least_squares_weighs_rows_as_copies_do():
    y = RNG.normal(size=(80, 2))
    counts = RNG.integers(0, 3, 80)
    expected = np.linalg.lstsq(np.repeat(X, counts, 0), np.repeat(y, counts, 0), rcond=None)[0]
    np.testing.assert_allclose(least_squares(X, y, counts.astype(float)), expected, atol=1e-10)


def test_least_squares_of_a_column_given_twice_shares_it():
    twice = np.column_stack([X[:, 1], X[:, 1]])
    np.testing.assert_allclose(least_squares(twice, 2 * X[:, 1:2], WEIGHTS)[:, 0], [1, 1], atol=1e-8)


def test_raised_eigenvalues_are_the_likeliest_that_are_allowed():
    sample = np.diag([2.0, 0.01])

    def cost(diagonal):
        return np.sum(np.log(diagonal) + np.diag(sample) / diagonal)

    found = raise_eigenvalues(sample, 0.1)
    np.testing.assert_allclose(found, np.diag([2.0, 0.1]))
    assert all(cost(np.diag(found)) <= cost([2.0 + a, 0.1 + b]) for a in (-0.1, 0, 0.1) for b in (0, 0.05, 0.2))


EXPERTS = {
    "gaussian": (GaussianExperts(1e-6), RNG.normal(size=(80, 2))),
    "blocks": (GaussianExperts(1e-6, ((0,), (1,))), RNG.normal(size=(80, 2))),
    "multinomial": (MultinomialExperts(3, 0.1), LABELS),
    "poisson": (PoissonExperts(0.1), RNG.poisson(2.0, (80, 1)).astype(float)),
}


@pytest.mark.parametrize("gates", [SoftmaxGates(0.1), GaussianGates(1e-3)], ids=["softmax", "gaussian"])
@pytest.mark.parametrize("kind", EXPERTS)
def test_em_climbs_with_every_gate_and_expert(gates, kind):
    experts, y = EXPERTS[kind]
    design = X if isinstance(gates, SoftmaxGates) else X[:, 1:]
    problem = Problem(gates, experts, design, X, y)
    resp = RNG.dirichlet(np.ones(3), 80)
    run = ascend(problem.step, problem.maximise(resp, None), tol=0.0, max_iter=12)
    assert np.all(np.diff(run.bounds) >= -1e-10) and run.bounds[-1] > run.bounds[0] + 1e-3


def test_an_expert_without_rows_stays_as_it_was():
    new = {"coef": np.zeros((2, 3))}
    kept = keep_dead(new, {"coef": np.ones((2, 3))}, np.array([5.0, 0.0]), ("coef",))
    assert kept["coef"].tolist() == [[0, 0, 0], [1, 1, 1]]
