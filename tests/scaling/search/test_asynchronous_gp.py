"""The process against scikit-learn, expected improvement against draws, rungs, pending trials, better than chance."""

import math

import numpy as np
import pytest

from mixwell.scaling.search import asynchronous_gp as search
from mixwell.scaling.search._planted import power_curves
from mixwell.scaling.search.asynchronous_gp import Config, Seen


def fresh(seed=0):
    return np.random.default_rng(seed)


def test_the_process_is_scikit_learns():
    process = pytest.importorskip("sklearn.gaussian_process")
    draws = fresh()
    seen = Seen(draws.random((12, 3)), draws.standard_normal(12))
    wanted = draws.random((5, 3))

    def theirs(length, rows=slice(0, 2)):
        matern = process.kernels.Matern
        return matern([length, length, 1e8], nu=2.5) * matern([1e8, 1e8, search.SPAN], nu=2.5)

    scores = {}
    for length in search.LENGTHS:
        fit = process.GaussianProcessRegressor(theirs(length), alpha=search.NOISE, optimizer=None).fit(*seen)
        scores[length] = fit.log_marginal_likelihood_value_
        mean, covariance = fit.predict(wanted, return_cov=True)
        ours = search.posterior(seen, wanted, length)
        assert np.allclose(ours[0], mean, atol=1e-5) and np.allclose(ours[1], covariance, atol=1e-5)
    assert search.likeliest(seen) == max(scores, key=scores.__getitem__)


def test_expected_improvement_is_the_mean_over_draws():
    mean, deviation = np.array([0.0, 1.0, -1.0]), np.array([1.0, 0.5, 0.1])
    draws = mean + deviation * fresh().standard_normal((200_000, 3))
    wanted = np.maximum(0.3 - draws, 0).mean(0)
    assert np.allclose(search.improvement(0.3, mean, deviation**2), wanted, atol=0.01)


def test_rungs_and_who_goes_on():
    assert search.rungs(27, Config()) == [1, 3, 9, 27] and search.rungs(20, Config(least=2)) == [2, 6, 18, 20]
    losses = {0: 0.5, 1: 0.2, 2: 0.4, 3: 0.3, 4: 0.6, 5: 0.7}
    assert [trial for trial in losses if search.goes_on(losses, trial, 3)] == [1, 3]
    assert search.goes_on({4: 9.0}, 4, 3) and not search.goes_on({4: math.inf}, 4, 3)


def test_a_pending_trial_leaves_little_to_gain_at_its_own_place():
    unit = np.linspace(0, 1, 5)[:, None]
    seen = Seen(np.array([[0.0, 1.0], [0.5, 1.0], [1.0, 1.0]]), np.array([0.5, -0.5, 0.5]))
    wanted = np.array([[0.25, 1.0]])
    before = search.gains(seen, seen.inputs_MD, wanted, 0.2)[0]
    told = search._fantasies(seen, unit, [1.0], [(1, 0)], 0.2, 64, fresh())
    known = np.vstack([seen.inputs_MD, wanted])
    after = np.mean([search.gains(one, known, wanted, 0.2)[0] for one in told])
    assert len({float(one.losses_M[-1]) for one in told}) == 64 and after < 0.4 * before
    assert search._fantasies(seen, unit, [1.0], [], 0.2, 64, fresh()) == [seen]


def test_it_finds_better_ones_than_random_proposals():
    gaps = {"model": [], "random": []}
    for seed in range(3):
        for name, first in (("model", 4), ("random", 24)):
            trials = power_curves(150, 9, fresh(seed))
            config = Config(proposals=24, first=first, fantasies=2)
            found = search.asynchronous_gp(trials, config, fresh(seed))
            gaps[name].append(found.loss - 1 / 3)
    assert np.mean(gaps["model"]) < 0.5 * np.mean(gaps["random"])


def test_losses_are_cut_and_flat_features_stay():
    scaled = search._standardised(np.array([1.0, 2.0, 3.0, 1e9, np.inf]))
    assert scaled[3] == scaled[4] == search.FAR and scaled[0] < scaled[1] < scaled[2] < search.FAR
    assert (search._standardised(np.array([np.inf, np.inf])) == 0).all()
    assert search._unit(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist() == [[0, 0], [1, 0]]


def test_refusals():
    for values in ({"proposals": 0}, {"workers": 0}, {"eta": 1}, {"least": 0}, {"first": 0}, {"fantasies": 0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**values)
