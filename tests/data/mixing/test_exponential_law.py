"""The exponential law, and what it does at the corners."""

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
