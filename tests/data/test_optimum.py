"""Tables of runs, configs, and the search for weights."""

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.data.mixing import bivariate_law, exponential_law, law_and_trees, regression
from mixwell.data.optimum import Search, best_weights, capped, caps, steadied
from mixwell.data.runs import read_runs


def fresh(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("build", [
    lambda: exponential_law.Config(delta=0), lambda: exponential_law.Config(starts=0),
    lambda: bivariate_law.Config(delta=-1), lambda: bivariate_law.Config(starts=0),
    lambda: regression.Config(kind="forest"), lambda: regression.Config(booster="x"),
    lambda: regression.Config(rounds=0), lambda: regression.Config(learning_rate=0.0),
    lambda: regression.Config(validation=regression.example(fresh())["runs"]),
    lambda: law_and_trees.Config(u="half"), lambda: Search(rounds=0), lambda: Search(kept=0),
    lambda: Search(strength=0.0)])
def test_configs_check_their_ranges(build):
    with pytest.raises(ValueError, match=r"expected|set booster"):
        build()


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


def test_later_rounds_come_nearer_to_a_corner():
    runs = exponential_law.example(fresh())["runs"]
    fitted = exponential_law.ExponentialLaw().fit(runs)
    one, three = (best_weights(fitted, {"docs": 1.0}, caps_D=np.ones(4), generator=fresh(),
                               search=Search(samples=500, kept=50, rounds=rounds)) for rounds in (1, 3))
    assert three.weights_D[1] > one.weights_D[1] and three.losses_M[1] < one.losses_M[1]


def drawn(tie=None, count=40):
    """A table of runs of five domains, weights rounded as people round them."""
    weights_ND = fresh().dirichlet(np.ones(5), count)
    if tie is not None:
        tie(weights_ND)
    weights_ND /= weights_ND.sum(1, keepdims=True)
    columns = {f"weight.{name}": np.round(weights_ND[:, place], 3) for place, name in enumerate("abcde")}
    return columns | {"loss.x": np.ones(count)}


def halved(weights_ND):
    weights_ND[:, 1] = weights_ND[:, 0] / 2


def summed(weights_ND):
    weights_ND[:, 4] = weights_ND[:, 2] + weights_ND[:, 3]


@pytest.mark.parametrize(("tie", "names"), [(halved, "a, b"), (summed, "c, d, e")])
def test_domains_that_vary_together_are_named(tie, names):
    with pytest.raises(MixwellError, match=f"the weights of {names} vary together in all 40 runs"):
        read_runs(drawn(tie))
    assert len(read_runs(drawn()).weights_ND) == 40


def test_a_weight_that_never_changes_tells_nothing():
    table = {"weight.a": [0.25] * 4, "weight.b": [0.5, 0.25, 0.6, 0.1], "weight.c": [0.25, 0.5, 0.15, 0.65],
             "loss.x": [3.0, 2.5, 2.0, 2.2]}
    with pytest.raises(MixwellError, match="the weight of 'a' is the same in every run"):
        read_runs(table)


@pytest.mark.parametrize(("column", "values", "message"), [
    ("loss.x", [3.0, float("nan"), 2.0], "column 'loss.x', run 2: nan came"),
    ("loss.x", [3.0, -1.0, 2.0], "column 'loss.x', run 2: -1 came"),
    ("loss.x", [3.0, 0.0, 2.0], "run 2: 0 came"),
    ("weight.a", [0.5, float("inf"), 0.2], "column 'weight.a', run 2: inf came"),
    ("weight.a", [0.5, -0.3, 0.2], "run 2 has the weight -0.3"),
    ("weight.a", [0.9, 0.3, 0.2], "the weights of run 1 sum to 1.4"),
    ("loss.x", ["high", 1, 2], "holds something that is no number")])
def test_tables_that_are_wrong_get_one_line(column, values, message):
    table = {"weight.a": [0.5, 0.3, 0.2], "weight.b": [0.5, 0.7, 0.8], "loss.x": [3.0, 2.5, 2.0]}
    with pytest.raises(MixwellError, match=message) as told:
        read_runs({**table, column: values})
    assert "\n" not in str(told.value)


def test_a_domain_without_tokens_and_too_few_runs_get_one_line():
    table = {"weight.a": [0.5, 0.3, 0.2], "weight.b": [0.5, 0.7, 0.8], "weight.c": [0.0, 0.0, 0.0],
             "loss.x": [3.0, 2.5, 2.0]}
    with pytest.raises(MixwellError, match="no run trains on 'c'"):
        read_runs(table)
    del table["weight.c"]
    with pytest.raises(MixwellError, match="3 runs came; expected at least 4"):
        exponential_law.ExponentialLaw().fit(read_runs(table))
    with pytest.raises(MixwellError, match="3 runs came; expected at least 10"):
        law_and_trees.LawAndTrees().fit(read_runs(table))


def test_the_choice_goes_no_further_from_a_safe_mixture_than_the_runs_bear_out():
    runs = exponential_law.example(fresh())["runs"]
    fitted = exponential_law.ExponentialLaw().fit(runs)
    best = best_weights(fitted, {"docs": 1.0}, caps_D=np.ones(4), search=Search(samples=500, kept=50))
    equal_D = np.full(4, 0.25)
    places = []
    for error in (0.0, 0.05, 0.3, 3.0):
        errors_NM = np.full_like(runs.losses_NM, error)
        found = steadied(fitted, best, equal_D, errors_NM, importance={"docs": 1.0})
        slack = error / np.sqrt(len(errors_NM))
        assert np.log(found.losses_M[1] / best.losses_M[1]) <= slack + 1e-12
        assert found.losses_M == pytest.approx(fitted.predict(found.weights_D)[0])
        places.append(found.weights_D[1])
    assert places[0] == best.weights_D[1] > places[1] > places[2] > places[3] == 0.25
    errors_NM = np.full_like(runs.losses_NM, 3.0)
    exact = steadied(fitted, best, equal_D, errors_NM, within=0.0, importance={"docs": 1.0})
    assert exact.weights_D == pytest.approx(best.weights_D)
