"""A line, trees, and whose they are."""

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.data.mixing import regression
from mixwell.data.predictor import rank_correlation


def fresh(seed=0):
    return np.random.default_rng(seed)


def test_a_line_is_least_squares_and_trees_are_constant_beyond_what_they_saw():
    runs = regression.example(fresh())["runs"]
    line = regression.Regression(regression.Config(kind="linear")).fit(runs)
    assert line.predict(np.eye(3)) == pytest.approx(np.array([[2.0, 3.0], [3.0, 2.0], [3.0, 3.0]]))
    trees = regression.Regression(regression.Config(rounds=300, learning_rate=0.05, seed=1)).fit(runs)
    assert trees.predict(np.eye(3)[:1])[0, 0] >= runs.losses_NM[:, 0].min() - 1e-6
    stump = regression.Regression(regression.Config(min_samples_leaf=60, rounds=5)).fit(runs)
    assert np.ptp(stump.predict(runs.weights_ND)[:, 0]) == 0


def test_lightgbm_is_asked_for_by_name():
    pytest.importorskip("lightgbm", reason="optional")
    runs = regression.example(fresh())["runs"]
    config = regression.Config(booster="lightgbm", validation=runs, rounds=400)
    found = regression.Regression(config).fit(runs).predict(runs.weights_ND)
    assert rank_correlation(found[:, 0], runs.losses_NM[:, 0]) > 0.95


def test_without_lightgbm_the_line_says_what_to_do(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(MixwellError, match="pip install lightgbm; or take booster=sklearn"):
        regression.Regression(regression.Config(booster="lightgbm")).fit(regression.example(fresh())["runs"])
