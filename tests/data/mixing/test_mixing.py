"""Mixture predictors against their equations, and the search for weights."""

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.data.mixing import bivariate_law, exponential_law, law_and_trees, regression
from mixwell.data.mixing._predictor import rank_correlation
from mixwell.data.mixing._runs import MixingRuns, read_runs
from mixwell.data.optimum import Search, best_weights, capped, caps


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


@pytest.mark.parametrize("build", [
    lambda: exponential_law.Config(delta=0), lambda: exponential_law.Config(starts=0),
    lambda: bivariate_law.Config(delta=-1), lambda: bivariate_law.Config(starts=0),
    lambda: regression.Config(kind="forest"), lambda: regression.Config(booster="x"),
    lambda: regression.Config(rounds=0), lambda: regression.Config(learning_rate=0.0),
    lambda: regression.Config(validation=regression.example(fresh())["runs"]),
    lambda: law_and_trees.Config(u="half"), lambda: Search(kept=0), lambda: Search(strength=0.0)])
def test_configs_check_their_ranges(build):
    with pytest.raises(ValueError, match=r"expected|set booster"):
        build()


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


def test_the_bivariate_law_finds_its_parameters_and_refuses_its_pole():
    runs = bivariate_law.example(fresh())["runs"]
    law = bivariate_law.BivariateLaw()
    for target, (alpha, floor) in enumerate([(0.05, 1.0), (0.1, 1.5), (0.2, 2.0)]):
        found = law.solve(runs, target, fresh())
        assert found.theta_P == pytest.approx([alpha, np.log(floor), np.log(20), 0.5], rel=1e-3)
    fitted = law.fit(runs)
    with pytest.raises(MixwellError, match="give those at which"):
        fitted.predict(runs.weights_ND)
    with pytest.raises(MixwellError, match="weight of 'a' is 0 in a run"):
        fitted.predict([[0.0, 0.5, 0.5]], np.array([100.0]))
    alone = MixingRuns(runs.domains, ("z",), runs.weights_ND, runs.losses_NM[:, :1])
    with pytest.raises(MixwellError, match="target 'z' is no domain"):
        law.fit(alone)
    late = runs.rows(np.flatnonzero(runs.steps_N == 3000.0))
    plain = MixingRuns(late.domains, late.targets, late.weights_ND, late.losses_NM)
    assert law.fit(plain).predict(plain.weights_ND) == pytest.approx(plain.losses_NM, rel=1e-4)


def test_the_bivariate_optimum_is_that_of_brute_force():
    alpha, height, weight = np.array([0.05, 0.1, 0.3]), np.array([2.0, 1.5, 1.0]), np.array([1.0, 2.0, 1.0])
    found = bivariate_law.optimum(alpha, height, weight)

    def loss(r):
        return (weight * height * r ** -alpha).sum(-1)

    others = fresh().dirichlet(np.ones(3), 200_000)
    assert found.sum() == pytest.approx(1) and loss(found) <= loss(others).min()
    slope = weight * alpha * height * found ** (-alpha - 1)
    assert slope == pytest.approx(np.full(3, slope[0]))
    assert bivariate_law.optimum(np.full(2, 0.1), np.ones(2), np.ones(2)) == pytest.approx([0.5, 0.5])


def test_entropy_weights_follow_what_the_next_token_holds():
    generator = fresh()
    coin = generator.integers(2, size=4000)
    dice = generator.integers(4, size=4000)
    turns = np.arange(4000) % 4
    found = bivariate_law.entropy_weights([coin, dice, turns], 4000)
    assert found == pytest.approx([1 / 3, 2 / 3, 0.0], abs=0.01)
    assert bivariate_law.conditional_entropy(coin, 4000) == pytest.approx(np.log(2), abs=1e-3)
    with pytest.raises(MixwellError, match="a domain has 10 tokens; 20"):
        bivariate_law.entropy_weights([coin[:10]], 20)
    with pytest.raises(MixwellError, match="entropies say nothing"):
        bivariate_law.entropy_weights([turns, turns], 100)


def test_tables_are_read_by_prefix():
    table = {"weight.a": [0.25, 0.5, 1.0], "weight.b": [0.75, 0.5, 0.0], "loss.a": [3.0, 2.5, 2.0], "steps": [1, 2, 3]}
    runs = read_runs(table, steps="steps")
    assert runs.domains == ("a", "b") and runs.targets == ("a",) and runs.steps_N.tolist() == [1, 2, 3]
    both = read_runs({"wa": [1.0]}, {"la": [2.0]}, weight_prefix="w", loss_prefix="l")
    assert both.domains == ("a",) and both.losses_NM.tolist() == [[2.0]]
    with pytest.raises(MixwellError, match=r"no column begins with 'x'; the table has weight.a"):
        read_runs(table, weight_prefix="x")
    with pytest.raises(MixwellError, match="3 runs have weights and 1 losses"):
        read_runs(table, {"loss.a": [1.0]})
    with pytest.raises(MixwellError, match=r"'loss.a', run 2: -1 came"):
        read_runs({**table, "loss.a": [3.0, -1.0, 2.0]})


def test_caps_come_from_the_runs_the_tokens_and_the_epochs():
    runs = regression.example(fresh())["runs"]
    fitted = regression.Regression(regression.Config(kind="linear")).fit(runs)
    assert caps(fitted).tolist() == runs.weights_ND.max(0).tolist()
    assert caps(fitted, beyond=True).tolist() == [1, 1, 1]
    found = caps(fitted, {"a": 50.0, "b": 300.0, "c": 1e9}, tokens=1000.0, epochs=2.0, beyond=True)
    assert found.tolist() == [0.1, 0.6, 1.0]
    with pytest.raises(MixwellError, match=r"sum to 0\.3; expected at least 1"):
        caps(fitted, {"a": 100.0, "b": 100.0, "c": 100.0}, tokens=1000.0, beyond=True)
    with pytest.raises(MixwellError, match="domain 'c' has 0 tokens"):
        caps(fitted, {"a": 1.0, "b": 1.0}, tokens=1000.0)
    with pytest.raises(MixwellError, match="give tokens, too"):
        caps(fitted, {"a": 1.0})
    with pytest.raises(MixwellError, match="unknown target 'x'; the runs have a, b"):
        best_weights(fitted, {"x": 1.0})
    with pytest.raises(MixwellError, match="not all 0"):
        best_weights(fitted, {"a": 0.0})


def test_what_exceeds_a_cap_goes_to_the_others_in_proportion():
    found = capped(np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1]]), np.array([0.5, 0.35, 1.0]))
    assert found == pytest.approx(np.array([[0.5, 0.25, 0.25], [0.5, 0.35, 0.15]]))
