"""Gaussian-gated experts against a loop, the joint normal as their limit, blocks, and the choice of a model."""

import math

import numpy as np
import pytest
import torch

from mixwell.density.regression.localized import LocalizedMixtureOfExperts, example, residual_blocks
from tests.density.regression._loops import dot, normal, poly

RNG = np.random.default_rng(4)
X = RNG.normal(size=(140, 1))
Y = np.where(X[:, 0] > 0, 2 * X[:, 0], -X[:, 0]) + 0.2 * RNG.normal(size=140)


def loop(model, degree):
    """Log-likelihood of y given x, and gates, for one column and one response."""
    total, gates = 0.0, []
    for value, y in zip(((X - model.shift_) / model.scale_)[:, 0], Y):
        parts = [w * normal(value - c[0], g[0, 0]) for w, c, g in
                 zip(model.gate_weights_, model.gate_means_, model.gate_covariances_)]
        gates.append([p / sum(parts) for p in parts])
        total += math.log(sum(g * normal(y - dot(b[:, 0], poly([value], degree)), s[0, 0])
                              for g, b, s in zip(gates[-1], model.coef_, model.covariances_)))
    return total, gates


@pytest.mark.parametrize("degree", [1, 2])
def test_likelihood_agrees_with_a_loop(degree):
    model = LocalizedMixtureOfExperts(n_experts=3, degree=degree, random_state=0).fit(X, Y)
    total, gates = loop(model, degree)
    np.testing.assert_allclose(model.log_likelihood(X, Y).sum(), total, rtol=1e-10)
    np.testing.assert_allclose(model.predict_gates(X), gates, atol=1e-12)
    assert np.diff(model.lower_bounds_).min() >= -1e-12


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_em_step_is_that_of_a_gaussian_mixture_of_rows_and_targets():
    from sklearn.mixture import GaussianMixture

    first = LocalizedMixtureOfExperts(n_experts=2, max_iter=1, random_state=0, reg_covar=1e-12).fit(X, Y)
    then = LocalizedMixtureOfExperts(n_experts=2, max_iter=2, random_state=0, reg_covar=1e-12).fit(X, Y)
    z = (X - first.shift_) / first.scale_

    def joint(model):
        means, covariances = [], []
        for c, g, b, s in zip(model.gate_means_, model.gate_covariances_, model.coef_, model.covariances_):
            a, slope = b[0, 0], b[1, 0]
            means.append([c[0], a + slope * c[0]])
            covariances.append([[g[0, 0], slope * g[0, 0]], [slope * g[0, 0], s[0, 0] + slope**2 * g[0, 0]]])
        return np.array(means), np.array(covariances)

    means, covariances = joint(first)
    trusted = GaussianMixture(2, weights_init=first.gate_weights_, means_init=means, reg_covar=0.0, max_iter=1,
                              precisions_init=np.linalg.inv(covariances)).fit(np.column_stack([z, Y]))
    means, covariances = joint(then)
    np.testing.assert_allclose(means, trusted.means_, atol=1e-6)
    np.testing.assert_allclose(covariances, trusted.covariances_, atol=1e-6)


def test_one_expert_is_ordinary_regression():
    model = LocalizedMixtureOfExperts(n_experts=1, degree=2).fit(X, Y)
    np.testing.assert_allclose(model.predict(X), np.polyval(np.polyfit(X[:, 0], Y, 2), X[:, 0]), atol=1e-8)


def four_responses():
    shared = RNG.normal(size=(140, 2)).repeat(2, axis=1)
    return X * [1, 2, -1, 1] + shared + 0.5 * RNG.normal(size=(140, 4))


def test_responses_that_one_expert_alone_correlates_share_a_block():
    covariances = np.stack([np.eye(3), np.eye(3)])
    covariances[1, 0, 2] = covariances[1, 2, 0] = -0.7
    assert residual_blocks(covariances, 0.5) == ((0, 2), (1,))
    assert residual_blocks(covariances, 0.8) == ((0,), (1,), (2,))


def test_blocks_are_found_and_cost_fewer_parameters():
    y = four_responses()
    full = LocalizedMixtureOfExperts(n_experts=1, block_threshold=0.0).fit(X, y)
    blocks = LocalizedMixtureOfExperts(n_experts=1, block_threshold=0.4).fit(X, y)
    diagonal = LocalizedMixtureOfExperts(n_experts=1, block_threshold=1.0).fit(X, y)
    assert blocks.blocks_ == ((0, 1), (2, 3)) and residual_blocks(full.covariances_, 0.4) == blocks.blocks_
    assert blocks.covariances_[0, 0, 2] == 0 and blocks.covariances_[0, 0, 1] > 0.5
    np.testing.assert_allclose(blocks.covariances_[0, :2, :2], full.covariances_[0, :2, :2], atol=1e-8)
    assert [m.n_parameters() for m in (full, blocks, diagonal)] == [10 + 10, 10 + 6, 10 + 4]
    assert full.log_likelihood(X, y).sum() > blocks.log_likelihood(X, y).sum() > diagonal.log_likelihood(X, y).sum()


def test_choice_of_the_number_of_experts():
    options = {"n_experts": (1, 2, 3, 4, 5), "random_state": 0, "tol": 1e-4}
    slope, bic, most = (LocalizedMixtureOfExperts(criterion=c, **options).fit(X, Y)
                        for c in ("slope", "bic", "likelihood"))
    values = [c["log_likelihood"] for c in most.candidates_]
    assert most.n_experts_ == 1 + int(np.argmax(values)) and most.n_experts_ > 2
    assert bic.n_experts_ == 2 and slope.n_experts_ <= most.n_experts_ and slope.kappa_ > 0
    expected = 1 + np.argmin([2 * slope.kappa_ * c["dimension"] - c["log_likelihood"] for c in slope.candidates_])
    assert slope.n_experts_ == expected and len(slope.coef_) == slope.n_experts_
    assert [c["dimension"] for c in slope.candidates_] == [k * (2 + 1 + 2) + k - 1 for k in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("gain, chosen", [(2.3, 0), (2.305, 1)])  # log(100) / 2 = 2.3026 nats a parameter
def test_a_parameter_costs_half_a_logarithm_of_the_rows_under_bic(gain, chosen):
    records = [{"dimension": 4, "log_likelihood": -50.0}, {"dimension": 7, "log_likelihood": -50.0 + 3 * gain}]
    model = LocalizedMixtureOfExperts(criterion="bic")
    assert model._choose(model._config(), records, 100)[0] == chosen


@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_starts(init):
    model = LocalizedMixtureOfExperts(init=init, n_init=3, random_state=0, tol=1e-3).fit(X, Y)
    assert model.score(X, Y) > 0.8


def test_refuses():
    with pytest.raises(ValueError, match=r"block_threshold 1\.5"):
        LocalizedMixtureOfExperts(block_threshold=1.5).fit(X, Y)
    with pytest.raises(ValueError, match="expected 'slope', 'bic' or 'likelihood'"):
        LocalizedMixtureOfExperts(criterion="aic").fit(X, Y)
    with pytest.raises(ValueError, match="at least four"):
        LocalizedMixtureOfExperts(n_experts=(1, 2)).fit(X, Y)


def test_example_runs():
    made = example(torch.Generator().manual_seed(0))
    assert made["estimator"].fit(made["X"], made["y"]).score(made["X"], made["y"]) > 0.9
