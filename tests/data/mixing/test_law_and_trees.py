"""The mean of a law and trees."""

import numpy as np
import pytest

from mixwell.data.mixing import exponential_law, law_and_trees, regression


def fresh(seed=0):
    return np.random.default_rng(seed)


def test_law_and_trees_lie_between_their_parts():
    runs = law_and_trees.example(fresh())["runs"]
    law = exponential_law.ExponentialLaw().fit(runs, fresh()).predict(runs.weights_ND)
    steps = regression.Config(rounds=100, learning_rate=0.1)
    trees = regression.Regression(steps).fit(runs).predict(runs.weights_ND)
    equal = law_and_trees.LawAndTrees(law_and_trees.Config(u="equal")).fit(runs, fresh()).predict(runs.weights_ND)
    assert equal == pytest.approx(np.sqrt(law * trees), rel=1e-3)
    chosen = law_and_trees.LawAndTrees().fit(runs).predict(runs.weights_ND)
    nearer = np.abs(np.log(chosen) - np.log(law)).mean()
    assert nearer < np.abs(np.log(equal) - np.log(law)).mean()  # the law is the truth here: more weight on it
