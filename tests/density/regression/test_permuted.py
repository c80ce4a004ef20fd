"""Regression of responses out of order against loops over all orders, trusted fits of rows in place, and its limits."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge

from mixwell.density.regression.permuted import Coefficients, PermutedRegression, assign, example, gains

RNG = np.random.default_rng(3)
FAMILIES = ["gaussian", "poisson", "logistic"]


def drawn(family, rows, responses, seed=0, scale=1.0):
    """X, Y in order, and slopes (Q, D)."""
    rng = np.random.default_rng(seed)
    x, slope = rng.normal(size=(rows, 3)), scale * rng.normal(size=(responses, 3))
    eta = x @ slope.T + 0.3
    y = {"gaussian": lambda: eta + 0.4 * rng.normal(size=eta.shape), "poisson": lambda: rng.poisson(np.exp(eta)),
         "logistic": lambda: rng.random(eta.shape) < 1 / (1 + np.exp(-eta))}[family]()
    return x, y.astype(float), slope


def slow_log(family, y, eta, noise):
    """Log probability of one response by scipy, and zero where it is missing."""
    if math.isnan(y):
        return 0.0
    if family == "gaussian":
        return stats.norm.logpdf(y, eta, noise**0.5)
    return stats.poisson.logpmf(y, math.exp(eta)) if family == "poisson" else \
        stats.bernoulli.logpmf(y, 1 / (1 + math.exp(-eta)))


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_assignment_is_the_likeliest_of_all_orders(family, missing):
    x, y, _ = drawn(family, 6, 3)
    if missing:
        y[[0, 2, 3], [1, 0, 2]] = np.nan
    h, noise = np.column_stack([np.ones(6), x]), np.array([0.5, 1.0, 2.0]) if family == "gaussian" else np.ones(3)
    b = RNG.normal(size=(4, 3))
    known = np.array([False, True, False, False, False, False])
    table = [[sum(slow_log(family, y[k, q], float(h[i] @ b[:, q]), noise[q]) for q in range(3)) for k in range(6)]
             for i in range(6)]
    best = max((o for o in itertools.permutations(range(6)) if o[1] == 1),
               key=lambda o: sum(table[i][o[i]] for i in range(6)))
    found = assign(gains(h, y, Coefficients(b, noise), family), known)
    assert sum(table[i][found[i]] for i in range(6)) == pytest.approx(sum(table[i][best[i]] for i in range(6)))
    assert found[1] == 1 and sorted(found) == list(range(6))


def test_rows_all_known_are_regressions_that_others_fit():
    known = np.ones(80, dtype=bool)
    x, y, _ = drawn("gaussian", 80, 2)
    y[5, 0] = np.nan
    model = PermutedRegression(ridge=0.0).fit(x, y, known=known)
    trusted = LinearRegression().fit(np.delete(x, 5, 0), np.delete(y[:, 0], 5))
    np.testing.assert_allclose(model.coef_[0], trusted.coef_, atol=1e-9)
    assert model.intercept_[0] == pytest.approx(trusted.intercept_)
    heavy = PermutedRegression(ridge=5.0).fit(x, y, known=known)
    trusted = Ridge(alpha=5.0 * heavy.noise_[1], tol=1e-12).fit(x, y[:, 1])
    np.testing.assert_allclose(heavy.coef_[1], trusted.coef_, atol=1e-8)
    x, y, _ = drawn("poisson", 80, 1, scale=0.5)
    model = PermutedRegression(family="poisson", ridge=0.8).fit(x, y, known=known)
    trusted = PoissonRegressor(alpha=0.01, tol=1e-10, max_iter=1000).fit(x, y[:, 0])
    np.testing.assert_allclose(model.coef_[0], trusted.coef_, atol=1e-5)
    x, y, _ = drawn("logistic", 80, 1)
    model = PermutedRegression(family="logistic", ridge=0.5).fit(x, y[:, 0], known=known)
    trusted = LogisticRegression(C=2.0, tol=1e-10, max_iter=1000).fit(x, y[:, 0])
    np.testing.assert_allclose(model.coef_, trusted.coef_, atol=1e-4)
    np.testing.assert_allclose(model.predict(x), trusted.predict_proba(x)[:, 1], atol=1e-4)
    rows = [sum(slow_log("logistic", float(v), math.log(p / (1 - p)), 1.0) for v in label)
            for label, p in zip(y, model.predict(x))]
    np.testing.assert_allclose(model.log_likelihood(x, y[:, 0]), rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_permuted_rows_are_found_and_the_bias_goes(family):
    x, y, slope = drawn(family, 120, 12, seed=1)
    mixed = y.copy()
    mixed[:30] = np.roll(y[:30], 7, axis=0)
    options = {"moving_cost": 3.0, "ridge": 1.0} if family == "logistic" else {}
    model = PermutedRegression(family=family, **options).fit(x, mixed)
    naive = PermutedRegression(family=family, **options).fit(x, mixed, known=np.ones(120, dtype=bool))
    error, before = (np.linalg.norm(m.coef_ - slope) for m in (model, naive))
    assert error < 0.9 * before
    truth = Coefficients(np.vstack([np.full(12, 0.3), slope.T]), np.full(12, 0.16 if family == "gaussian" else 1.0))
    oracle = assign(gains(np.column_stack([np.ones(120), x]), mixed, truth, family), np.zeros(120, dtype=bool))
    right, most = ((mixed[order] == y).all(1).mean() for order in (model.permutation_, oracle))
    assert right > 0.85 * most and right > 0.5
    bounds = model.log_likelihoods_
    assert len(bounds) == model.n_iter_ + 1 > 2 and np.diff(bounds).min() > -1e-6
    moved = (model.permutation_ != np.arange(120)).sum()
    likelihood = model.log_likelihood(x, mixed[model.permutation_]).sum()
    price = model.moving_cost * moved + 0.5 * model.ridge * (model.coef_**2).sum()
    assert bounds[-1] == pytest.approx(likelihood - price)
    np.testing.assert_array_equal(model.match(x, mixed), model.permutation_)


def test_two_steps_start_from_the_rows_that_are_known():
    x, y, slope = drawn("gaussian", 60, 6, seed=2)
    mixed = y.copy()
    mixed[20:] = y[20:][np.random.default_rng(0).permutation(40)]
    known = np.arange(60) < 20
    two = PermutedRegression(max_iter=1).fit(x, mixed, known=known)
    assert two.n_iter_ == 1 and (two.permutation_[:20] == np.arange(20)).all()
    assert (mixed[two.permutation_] == y).all(1).mean() > 0.9
    blind = PermutedRegression(max_iter=1).fit(x, mixed)
    assert np.linalg.norm(two.coef_ - slope) < 0.5 * np.linalg.norm(blind.coef_ - slope)


def test_a_price_for_moves_keeps_rows_that_gain_little_in_place():
    x, y, _ = drawn("poisson", 120, 5)
    mixed = y.copy()
    mixed[:24] = np.roll(y[:24], 7, axis=0)
    free, priced, dear = (PermutedRegression(family="poisson", moving_cost=cost).fit(x, mixed) for cost in (0, 3, 1e6))
    kept = [(mixed[m.permutation_] == y).all(1).mean() for m in (free, priced)]
    assert kept[1] > 0.85 > 0.7 > kept[0]
    assert (dear.permutation_ == np.arange(120)).all()
    with pytest.raises(ValueError, match=r"ridge and moving_cost are 0\.1 and -1; expected 0 or more"):
        PermutedRegression(moving_cost=-1).fit(x, y)


def test_one_response_is_merely_sorted():
    x, y, _ = drawn("gaussian", 40, 1)
    model = PermutedRegression().fit(x, y[:, 0])
    paired = y[model.permutation_, 0]
    assert (np.argsort(paired) == np.argsort(model.predict(x))).all() and model.predict(x).shape == (40,)


def test_units_of_responses_do_not_count():
    x, y, _ = drawn("gaussian", 60, 4, seed=4)
    y[:12] = np.roll(y[:12], 5, axis=0)
    one, two = (PermutedRegression(ridge=0.0).fit(x, y * scale) for scale in (1.0, np.array([1.0, 100.0, 0.01, 7.0])))
    np.testing.assert_array_equal(one.permutation_, two.permutation_)
    np.testing.assert_allclose(one.coef_[1] * 100, two.coef_[1], rtol=1e-8)


def test_refuses():
    x, y, _ = drawn("gaussian", 20, 2)
    for wrong in ({"family": "gamma"}, {"ridge": -1.0}, {"max_iter": 0}):
        with pytest.raises(ValueError, match="expected"):
            PermutedRegression(**wrong).fit(x, y)
    with pytest.raises(ValueError, match=r"the logistic family expects 0 and 1"):
        PermutedRegression(family="logistic").fit(x, y)
    with pytest.raises(ValueError, match=r"the poisson family expects counts"):
        PermutedRegression(family="poisson").fit(x, y)
    with pytest.raises(ValueError, match=r"known is int64 of shape \(20,\); expected bool of shape \(20,\)"):
        PermutedRegression().fit(x, y, known=np.arange(20))
    y[:, 1] = np.nan
    with pytest.raises(ValueError, match="response 1 is missing in all 20 rows"):
        PermutedRegression().fit(x, y)
    with pytest.raises(ValueError, match="y has 1 responses; expected 2"):
        PermutedRegression().fit(*drawn("gaussian", 20, 2)[:2]).match(x, y[:, 0])


def test_example_runs():
    made = example(torch.Generator().manual_seed(0))
    assert made["estimator"].fit(made["X"], made["y"]).score(made["X"], made["y"]) > 0.5
