"""The exponential law, and what it does at the corners."""

from dataclasses import replace

import numpy as np
import pytest

from mixwell.data.mixing import exponential_law


def fresh(seed=0):
    return np.random.default_rng(seed)


def test_the_exponential_law_finds_the_law_and_goes_on_beyond_the_runs():
    runs = exponential_law.example(fresh())["runs"]
    fitted = exponential_law.ExponentialLaw().fit(runs)
    corners = np.eye(4)
    by_hand = 1.5 + 1.2 * np.exp(corners @ (-0.5 - 2.5 * np.eye(4)))
    assert fitted.predict(corners) == pytest.approx(by_hand, rel=1e-4)
    one = exponential_law.ExponentialLaw(exponential_law.Config(delta=0.5, starts=1)).fit(runs)
    assert one.predict(corners) == pytest.approx(by_hand, rel=1e-2)


def scattered(count, seed):
    runs = exponential_law.example(fresh(seed))["runs"].rows(np.arange(count))
    scatter = np.exp(0.01 * fresh(seed + 100).standard_normal(runs.losses_NM.shape))
    return replace(runs, losses_NM=runs.losses_NM * scatter)


def test_slopes_that_are_held_tell_a_dozen_runs_better_and_many_runs_alike():
    configs = [exponential_law.Config(spread=spread, starts=2) for spread in (None, 10.0)]
    free, held = map(exponential_law.ExponentialLaw, configs)
    errors = []
    for law in (free, held):
        own = [law.fit(scattered(12, seed)).out_of_fold(fresh()) for seed in range(2)]
        errors.append(np.sqrt(np.mean(np.square(own))))
    assert errors[1] < errors[0] and errors[1] < 0.06
    many = exponential_law.example(fresh())["runs"]
    corners = np.eye(4)
    assert held.fit(many).predict(corners) == pytest.approx(free.fit(many).predict(corners), rel=2e-3)


def test_a_narrow_spread_flattens_the_law():
    runs = scattered(40, 0)
    flat = exponential_law.ExponentialLaw(exponential_law.Config(spread=1e-4)).fit(runs)
    assert np.ptp(flat.predict(np.eye(4)), 0).max() < 0.1 * np.ptp(runs.losses_NM, 0).min()
    with pytest.raises(ValueError, match="spread is 0"):
        exponential_law.Config(spread=0)
