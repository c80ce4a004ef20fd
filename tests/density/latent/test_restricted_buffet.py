"""The restricted buffet against enumeration, quadrature, its own prior, and features that were planted."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit, gamma
from scipy.stats import poisson

from mixwell.density.latent.restricted_buffet import (
    Config,
    Prior,
    RestrictedBuffet,
    State,
    draw_loadings,
    example,
    expected_features,
    flip,
    log_counts_law,
    log_restriction,
    log_weight_prior,
    move_weights,
    rounds_for,
    split_counts,
    swap,
)

LOGIT = np.array([0.4, -1.0, 0.2, -0.3])
LAW = np.log([0.0 + 1e-300, 0.5, 0.3, 0.2, 1e-300])


def prior(law=LAW, features=4):
    return Prior(law, 0.3, 1.3, 6.0, 0.5, np.array([[2.0] * 3] + [[0.4] * 3] * features))


def test_the_law_of_counts_is_a_sum_over_all_codes():
    expected = np.zeros(5)
    for z in itertools.product((0, 1), repeat=4):
        expected[sum(z)] += np.prod([expit(t) if on else 1 - expit(t) for on, t in zip(z, LOGIT)])
    np.testing.assert_allclose(np.exp(log_counts_law(LOGIT)), expected)
    assert (log_restriction(LOGIT, prior(None)) == 0).all()


@pytest.mark.parametrize(("c", "s"), [(1.0, 0.3), (2.0, 0.0), (-0.2, 0.5)])
def test_the_cut_intensity_has_the_mass_that_rows_would_see(c, s):
    scale = 2 * gamma(1 + c) / gamma(1 - s) / gamma(c + s)
    mass, _ = quad(lambda p: scale * p ** (-s - 1) * (1 - p) ** (c + s - 1) * (1 - (1 - p) ** 7), 0, 1)
    assert expected_features(2.0, c, s, 7) == pytest.approx(mass, rel=1e-6)
    slow = sum(2 * gamma(1 + c) * gamma(n + c + s) / gamma(n + 1 + c) / gamma(c + s) for n in range(7))
    assert mass == pytest.approx(slow, rel=1e-6)  # the sequential buffet's new dishes
    assert expected_features(2.0, c, s, rounds_for(2.0, c, s, 12)) == pytest.approx(12)


def test_features_that_only_very_many_rows_take():
    """Against R^s, which Gamma(R + c + s) / Gamma(R + c) becomes."""
    c, s, mass = 1.0, 0.05, 1.0  # R is 5.6e13
    log_rounds = np.log(rounds_for(mass, c, s, 80))
    first = gamma(1 + c) / gamma(c + s)
    assert mass / s * (first * np.exp(s * log_rounds) - c) == pytest.approx(80, rel=1e-9)
    with pytest.raises(ValueError, match="n_features is 10, more than any rows take"):
        rounds_for(0.02, c, 0.0, 10)


def test_codes_of_rows_with_known_loadings_follow_their_posterior():
    """Flips and swaps of many equal rows against all codes of one."""
    rng = np.random.RandomState(0)
    b = np.array([[0.2, 0.3, 0.1], [1.0, 0.1, 0.4], [0.3, 1.2, 0.1], [0.5, 0.5, 0.5], [0.1, 0.2, 1.5]])
    x, law = np.array([2.0, 1.0, np.nan]), prior()
    log_p = {}
    for z in itertools.product((0, 1), repeat=4):
        rate = b[0] + np.array(z) @ b[1:]
        own = sum(t * on - math.log1p(math.exp(t)) for on, t in zip(z, LOGIT))
        log_p[z] = own + (LAW - log_counts_law(LOGIT))[sum(z)] + poisson.logpmf(x[:2], rate[:2]).sum()
    total = np.logaddexp.reduce(list(log_p.values()))
    for moves in (("flip",), ("flip", "swap")):
        state = State(np.tile([True, False, False, False], (4000, 1)), b, LOGIT)
        for _ in range(25):
            state = flip(np.tile(x, (4000, 1)), state, law, rng)
            state = swap(np.tile(x, (4000, 1)), state, rng) if "swap" in moves else state
        for z, log in log_p.items():
            share = (state.z_NK == np.array(z, dtype=bool)).all(1).mean()
            assert abs(share - math.exp(log - total)) < 0.03, z


def test_swaps_alone_keep_how_many_are_active_and_their_odds():
    rng, b = np.random.RandomState(1), np.full((4, 3), 0.5)
    state = State(np.tile([True, False, False], (6000, 1)), b, np.array([0.5, -0.5, 0.0]))
    for _ in range(15):
        state = swap(np.full((6000, 3), np.nan), state, rng)
    odds = np.exp([0.5, -0.5, 0.0])
    assert (state.z_NK.sum(1) == 1).all()
    np.testing.assert_allclose(state.z_NK.mean(0), odds / odds.sum(), atol=0.025)


def test_weights_keep_their_prior_under_any_law():
    """Without counts the rows tell nothing of the weights, if the normaliser is in their steps, and obey the law."""
    rng, law = np.random.RandomState(2), prior(np.log([1e-300, 0.5, 0.5]), features=2)
    state = State(np.tile([True, False], (3, 1)), np.full((3, 3), 0.5), np.zeros(2))
    weights, active, unseen = [], [], np.full((3, 3), np.nan)
    for _ in range(1500):
        state = swap(unseen, flip(unseen, state, law, rng), rng)
        state = move_weights(state, law, rng)
        weights.append(expit(state.logit_K))
        active.append(state.z_NK.sum(1))
    height = [quad(lambda t, j=j: expit(t) ** j * math.exp(log_weight_prior(np.array([t]), law)[0]), -60, 60)[0]
              for j in (0, 1)]
    assert np.mean(weights) == pytest.approx(height[1] / height[0], abs=0.05)
    assert np.mean(np.array(active) == 1) == pytest.approx(0.5, abs=0.05)


def test_loadings_are_drawn_from_their_conjugate_posterior():
    rng = np.random.RandomState(3)
    x = rng.poisson(2.0, size=(6, 3)).astype(float)
    x[0, 0] = np.nan
    state = State(np.zeros((6, 1), dtype=bool), np.full((2, 3), 0.7), np.zeros(1))
    np.testing.assert_array_equal(split_counts(x, state, rng)[0], np.nansum(x, 0))
    drawn = np.stack([draw_loadings(x, state, prior(None, 1), rng).b_KD for _ in range(3000)])
    seen = np.array([5, 6, 6])
    np.testing.assert_allclose(drawn[:, 0].mean(0), (0.5 + np.nansum(x, 0)) / (2.0 + seen), rtol=0.03)
    np.testing.assert_allclose(drawn[:, 1].mean(0), 0.5 / 0.4, rtol=0.12)
    on = state._replace(z_NK=np.ones((6, 1), dtype=bool), b_KD=np.array([[1.0] * 3, [3.0] * 3]))
    share = np.mean([split_counts(x, on, rng)[1].sum() for _ in range(400)]) / np.nansum(x)
    assert share == pytest.approx(0.75, abs=0.02)


def planted():
    rng = np.random.default_rng(4)
    loadings = np.zeros((3, 12))
    for k in range(3):
        loadings[k, 4 * k : 4 * k + 4] = 6.0
    codes = np.zeros((60, 3))
    for row in codes:
        row[rng.permutation(3)[: rng.integers(1, 3)]] = 1
    return codes, rng.poisson(codes @ loadings + 0.1).astype(float)


def test_planted_features_come_back_and_rows_obey_their_law():
    codes, x = planted()
    hidden = np.random.default_rng(0).random(x.shape) < 0.1
    model = RestrictedBuffet(n_features=4, row_law=[0, 1, 1], mass=1.5, concentration=1.0, stability=0.2, shape=0.3,
                             background=0.05, sweeps=120, kept=30, random_state=1).fit(np.where(hidden, np.nan, x))
    assert set(model.codes_.sum(1)) <= {1, 2}
    match = np.array([[(model.codes_[:, k] == codes[:, j]).mean() for j in range(3)] for k in range(4)])
    assert (match.max(0) > 0.9).all()
    told = model.log_predictive(x)[hidden].mean()
    flat = poisson.logpmf(x, x.mean(0))[hidden].mean()
    assert told > flat + 1 and len(model.log_likelihoods_) == 120
    assert model.rates_.shape == x.shape and np.isnan(model.log_predictive(np.full(x.shape, np.nan))).all()


def test_refuses():
    x = planted()[1]
    for wrong in ({"n_features": 0}, {"mass": 0.0}, {"shape": -1.0}, {"background": 0.0}, {"sweeps": 0}, {"kept": 0},
                  {"stability": 1.0}, {"stability": 0.2, "concentration": -0.2}, {"row_law": [1.0, 0.0]},
                  {"row_law": [0.5] * 20}, {"row_law": [-1.0, 2.0]}):
        with pytest.raises(ValueError, match="expected"):
            RestrictedBuffet(**wrong).fit(x)
    for wrong in (x - 1, x + 0.5):
        with pytest.raises(ValueError, match="X holds numbers that are no counts"):
            RestrictedBuffet(sweeps=1).fit(wrong)
    model = RestrictedBuffet(sweeps=2, kept=1, random_state=0).fit(x)
    with pytest.raises(ValueError, match=r"X has shape \(3, 12\); expected \(60, 12\)"):
        model.log_predictive(x[:3])


def test_example_runs():
    made = example(torch.Generator().manual_seed(0))
    assert (made["estimator"].fit(made["X"]).codes_.sum(1) == 1).all()
    assert Config(row_law=[0, 1]).row_law == [0, 1]
