"""Logistic experts against a loop, logistic regression as their limit, and what a transformed gate changes."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mixwell.density.regression.multinomial import TRANSFORMS, MultinomialMixtureOfExperts, example, voronoi_loss
from tests.density.regression._loops import dot, softmax, standardised

RNG = np.random.default_rng(2)
X = RNG.uniform(-2, 2, (160, 2))
Y = np.where(np.abs(X[:, 0]) < 1, "inner", np.where(X[:, 1] > 0, "upper", "lower"))


SLOW = {"identity": float, "tanh": math.tanh, "sine": math.sin, "sigmoid": lambda v: math.exp(v) / (1 + math.exp(v))}


def loop(model, x, transform):
    """Class probabilities, one row at a time."""
    result = []
    for row in x.tolist():
        gate_row = [1.0] + [SLOW[transform](v) for v in row]
        gates = softmax([dot(w, gate_row) for w in model.gate_coef_])
        experts = [softmax([dot(a, [1.0, *row]) for a in classes]) for classes in model.coef_]
        result.append([sum(g * e[c] for g, e in zip(gates, experts)) for c in range(3)])
    return result


@pytest.mark.parametrize("transform", list(TRANSFORMS))
def test_probabilities_agree_with_a_loop(transform):
    model = MultinomialMixtureOfExperts(n_experts=3, gate_transform=transform, random_state=0, tol=1e-3).fit(X, Y)
    expected = np.array(loop(model, standardised(X), transform))
    np.testing.assert_allclose(model.predict_proba(X), expected, atol=1e-12)
    index = np.searchsorted(model.classes_, Y)
    np.testing.assert_allclose(model.log_likelihood(X, Y), np.log(expected[np.arange(160), index]), atol=1e-10)
    assert np.diff(model.lower_bounds_).min() >= -1e-12 and model.score(X, Y) > 0.8


def test_one_expert_is_logistic_regression():
    model = MultinomialMixtureOfExperts(n_experts=1, ridge=0.5, tol=1e-10).fit(X, Y)
    trusted = LogisticRegression(C=2.0, tol=1e-10, max_iter=1000).fit(standardised(X), Y)
    np.testing.assert_allclose(model.predict_proba(X), trusted.predict_proba(standardised(X)), atol=1e-4)
    assert (model.predict(X) == trusted.predict(standardised(X))).all()


def derivatives(transform, slope):
    """How nearly d/d(gate slope) of expert 1 lies in the span of the other derivatives that the theory ties it to."""
    x = np.linspace(-2, 2, 200)
    gate = 1 / (1 + np.exp(-0.7 * TRANSFORMS[transform](x)))
    first, second = 1 / (1 + np.exp(-(0.5 + slope * x))), 1 / (1 + np.exp(0.3 - x))
    share = gate * (1 - gate) * (first - second)
    by_gate_intercept, by_gate_slope = share, share * TRANSFORMS[transform](x)
    by_intercept, by_slope = gate * first * (1 - first), gate * first * (1 - first) * x
    mixed = TRANSFORMS[transform](x) * by_intercept  # d^2 / d(gate slope) d(expert intercept), up to the gate's share
    basis = np.column_stack([by_gate_intercept, by_gate_slope, by_intercept, by_slope])
    rest = mixed - basis @ np.linalg.lstsq(basis, mixed, rcond=None)[0]
    return np.linalg.norm(rest) / np.linalg.norm(mixed)


def test_a_transformed_gate_unties_gate_from_expert_where_its_slope_vanishes():
    assert derivatives("identity", 0.0) < 1e-10
    assert min(derivatives(t, 0.0) for t in ("tanh", "sine")) > 1e-3


def test_voronoi_loss():
    gate, coef = RNG.normal(size=(2, 3)), RNG.normal(size=(2, 3, 3))
    assert voronoi_loss(gate + np.array([0.5, 1.0, -1.0]), coef, gate, coef) < 1e-12
    assert voronoi_loss(gate[::-1], coef[::-1], gate, coef) < 1e-12
    one_off = coef.copy()
    one_off[0, 0, 0] += 0.01
    single = voronoi_loss(gate, one_off, gate, coef)
    np.testing.assert_allclose(single, 0.01 * softmax(gate[:, 0].tolist())[0], rtol=1e-6)
    split = np.concatenate([gate[:1] - [np.log(2), 0, 0], gate[:1] - [np.log(2), 0, 0], gate[1:]])
    shared = voronoi_loss(split, np.concatenate([one_off[:1], coef]), gate, coef)
    np.testing.assert_allclose(shared, 0.01**2 * softmax(gate[:, 0].tolist())[0] / 2, rtol=1e-6)  # squared: two share


@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_starts(init):
    model = MultinomialMixtureOfExperts(init=init, n_init=2, random_state=0, tol=1e-3).fit(X, Y)
    assert model.score(X, Y) > 0.7
    assert model.n_parameters() == 3 + 2 * 2 * 3


def test_refuses():
    with pytest.raises(ValueError, match="expected one of identity, tanh"):
        MultinomialMixtureOfExperts(gate_transform="cube").fit(X, Y)
    with pytest.raises(ValueError, match="1 class; expected two"):
        MultinomialMixtureOfExperts().fit(X, np.zeros(160))
    with pytest.raises(ValueError, match="not among the classes"):
        MultinomialMixtureOfExperts(tol=1e-2).fit(X, Y).log_likelihood(X[:1], ["middle"])


def test_example_runs():
    made = example(torch.Generator().manual_seed(0))
    assert made["estimator"].fit(made["X"], made["y"]).score(made["X"], made["y"]) > 0.9
