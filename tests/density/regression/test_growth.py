"""Trajectory classes against a loop over people, least squares as their limit, and recovery of a planted knot."""

import math

import numpy as np
import pytest
import torch

from mixwell.density.regression.growth import GrowthMixtureOfExperts, Waves, example, pack, posterior, unpack
from tests.density.regression._loops import dot, softmax

TIMES = np.arange(8.0)


def people(n, rng, knot=(3.0, 4.5), missing=0.0):
    """Outcomes, gate covariate, growth covariate and class of n people; a bend at the class's knot."""
    z, x = rng.normal(size=(n, 1)), rng.normal(size=(n, 1))
    label = (rng.random(n) < 1 / (1 + np.exp(-2 * z[:, 0]))).astype(int)
    start = 1 + 3 * label + 0.8 * x[:, 0] + 0.3 * rng.normal(size=n)
    slopes = np.array([[2.0, 0.5], [1.0, -0.5]])[label] + 0.1 * rng.normal(size=(n, 2))
    bend = np.array(knot)[label]
    curve = start[:, None] + slopes[:, :1] * np.minimum(TIMES, bend[:, None])
    curve = curve + slopes[:, 1:] * np.maximum(TIMES - bend[:, None], 0)
    y = curve + 0.3 * rng.normal(size=curve.shape)
    y[rng.random(y.shape) < missing] = np.nan
    return y, z, x, label


RNG = np.random.default_rng(7)
Y, Z, X, LABEL = people(80, RNG, missing=0.1)


def loop(model, y, z, x):
    """Log-likelihood of every person, from the whole covariance of what was seen."""
    result = []
    for i in range(len(y)):
        seen = [j for j in range(8) if not math.isnan(y[i, j])]
        gates = softmax([dot(w, [1.0, *z[i]]) for w in model.gate_coef_])
        total = 0.0
        for k in range(2):
            load = np.array([[1.0, TIMES[j] - model.knots_[k], abs(TIMES[j] - model.knots_[k])] for j in seen])
            mean = load @ (np.array([1.0, *x[i]]) @ model.coef_[k])
            covariance = load @ model.growth_covariances_[k] @ load.T + model.noise_[k] * np.eye(len(seen))
            rest = y[i, seen] - mean
            quadratic = rest @ np.linalg.solve(covariance, rest)
            total += gates[k] * math.exp(-0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * covariance)[1]))
        result.append(math.log(total))
    return result


@pytest.fixture(scope="module")
def model():
    return GrowthMixtureOfExperts(random_state=0, tol=1e-3).fit(Y, TIMES, Z, X)


def test_likelihood_agrees_with_a_loop(model):
    np.testing.assert_allclose(model.log_likelihood(Y, TIMES, Z, X), loop(model, Y, Z, X), rtol=1e-8)
    np.testing.assert_allclose(model.responsibilities(Y, TIMES, Z, X).sum(1), 1)


def test_the_bound_is_the_mean_likelihood_less_the_penalty_of_the_gates():
    options = {"random_state": 0, "tol": 0.0, "ridge": 0.5}
    first, then = (GrowthMixtureOfExperts(max_iter=n, **options).fit(Y, TIMES, Z, X) for n in (1, 2))
    slopes = first.gate_coef_[:, 1:]
    expected = (sum(loop(first, Y, Z, X)) - 0.25 * (slopes**2).sum()) / 80
    assert then.lower_bounds_[1] == pytest.approx(expected, rel=1e-8)


def test_em_never_descends_with_waves_missing(model):
    assert np.isnan(Y).any() and np.diff(model.lower_bounds_).min() >= -1e-9


def test_classes_knots_and_covariates_are_recovered(model):
    labels = model.predict(Y, TIMES, Z, X)
    np.testing.assert_array_equal(labels, model.responsibilities(Y, TIMES, Z, X).argmax(1))
    accuracy = max(np.mean(labels == LABEL), np.mean(labels != LABEL))
    assert accuracy > 0.95
    order = np.argsort(model.knots_)
    np.testing.assert_allclose(model.knots_[order], [3.0, 4.5], atol=0.4)
    factors = model.growth_factors()[order]
    np.testing.assert_allclose(factors[:, 0], [[1, 2, 0.5], [4, 1, -0.5]], atol=0.35)
    np.testing.assert_allclose(factors[:, 1, 0], [0.8, 0.8], atol=0.25)  # the covariate moves the level alone
    np.testing.assert_allclose(factors[:, 1, 1:], 0, atol=0.15)


def test_posterior_of_the_growth_factors_is_the_conditional_normal():
    waves = Waves(np.nan_to_num(Y[:5]), np.tile(TIMES, (5, 1)), ~np.isnan(Y[:5]), True)
    psi, mean = np.diag([1.0, 0.3, 0.2]), RNG.normal(size=(5, 3))
    found = posterior(waves, mean, 3.0, psi, 0.5)
    for i in range(5):
        load = waves.loadings(3.0)[i][waves.seen_NJ[i]]
        y = Y[i][waves.seen_NJ[i]]
        covariance = load @ psi @ load.T + 0.5 * np.eye(len(y))
        gain = psi @ load.T @ np.linalg.inv(covariance)
        np.testing.assert_allclose(found.m_NL[i], gain @ (y - load @ mean[i]), atol=1e-9)
        np.testing.assert_allclose(found.v_NLL[i], psi - gain @ load @ psi, atol=1e-9)


def test_one_straight_class_with_all_waves_is_least_squares_of_the_means():
    y = np.nan_to_num(Y, nan=1.0)
    model = GrowthMixtureOfExperts(n_experts=1, shape="linear", tol=1e-9).fit(y, TIMES)
    slope, level = np.polyfit(TIMES, y.mean(0), 1)
    np.testing.assert_allclose(model.growth_factors()[0, 0], [level, slope], atol=1e-5)
    assert model.n_parameters() == 2 + 3 + 1


def test_covariates_where_they_act_lower_bic(model):
    plain = GrowthMixtureOfExperts(random_state=0, tol=1e-2).fit(Y, TIMES)
    gate = GrowthMixtureOfExperts(random_state=0, tol=1e-2).fit(Y, TIMES, Z)
    assert model.bic(Y, TIMES, Z, X) < gate.bic(Y, TIMES, Z) < plain.bic(Y, TIMES)
    assert gate.gate_coef_.shape == (2, 2) and plain.gate_coef_.shape == (2, 1)


def test_packing_round_trips_and_standard_errors_shrink_with_people(model):
    flat, shapes = pack(model._params, True)
    back = unpack(flat, shapes)
    for name in ("coef", "knot", "theta", "psi"):
        np.testing.assert_allclose(back[name], model._params[name], atol=1e-12)
    errors = model.standard_errors(Y, TIMES, Z, X)
    twice = model.standard_errors(*(np.concatenate([a, a]) for a in (Y, np.tile(TIMES, (80, 1)), Z, X)))
    for name in ("gate_coef", "coef", "knot"):
        assert (errors[name] > 0).all()
        np.testing.assert_allclose(twice[name], errors[name] / math.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_starts_and_times_of_ones_own(init):
    own = np.tile(TIMES, (80, 1)) + 0.01
    model = GrowthMixtureOfExperts(init=init, n_init=2, random_state=0, max_iter=5).fit(Y, own, Z, X)
    assert model.lower_bounds_[-1] > model.lower_bounds_[0]


def test_refuses():
    with pytest.raises(ValueError, match=r"times has shape \(3,\)"):
        GrowthMixtureOfExperts().fit(Y, TIMES[:3])
    with pytest.raises(ValueError, match="row 1 of Y has no wave"):
        GrowthMixtureOfExperts().fit(np.vstack([Y[:1], np.full((1, 8), np.nan)]), TIMES)
    with pytest.raises(ValueError, match="gate_X has 3 rows for 80 people"):
        GrowthMixtureOfExperts().fit(Y, TIMES, Z[:3])
    with pytest.raises(ValueError, match="expected 'bilinear' or 'linear'"):
        GrowthMixtureOfExperts(shape="cubic").fit(Y, TIMES)


def test_example_runs():
    made = example(torch.Generator().manual_seed(0))
    labels = made["estimator"].set_params(tol=1e-3).fit(made["Y"], made["times"]).predict(made["Y"], made["times"])
    assert abs(np.mean(labels == np.arange(40) % 2) - 0.5) > 0.45


def test_no_variance_falls_below_its_floor():
    inputs = example(torch.Generator().manual_seed(0))
    model = inputs.pop("estimator").set_params(reg_covar=2.0, max_iter=3).fit(**inputs)
    assert np.min(model.noise_) >= 2 * np.var(inputs["Y"]) * (1 - 1e-9)


def test_a_heavy_ridge_holds_the_gates_slopes_at_zero():
    light, heavy = (GrowthMixtureOfExperts(random_state=0, max_iter=5, ridge=r).fit(Y, TIMES, Z) for r in (1e-2, 1e6))
    assert np.abs(light.gate_coef_[:, 1:]).max() > 0.1 > 1e-3 > np.abs(heavy.gate_coef_[:, 1:]).max()
