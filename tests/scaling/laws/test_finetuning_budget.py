"""The law against a loop, the best split against brute force, cold starts and small budgets, bad tables."""

import math

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.scaling.laws.finetuning_budget import Budget, FinetuningBudget, best_split, example, of_counts

PARAMETERS = example(np.random.default_rng(0))["parameters"]


def curve(**changes):
    return FinetuningBudget().curve({**PARAMETERS, **changes})


def by_hand(s, p, A, E, a, b, u, v, w0):
    worth = (w0 + s / u) / (1 + s / u)
    return E + A * math.pow(1 + s / u, -a) * math.pow(1 + worth * p / v, -b)


def test_the_law_is_the_formula_at_counts_that_may_be_none():
    table = of_counts({"examples": [0, 0, 100, 2500], "pairs": [0, 300, 0, 10_000], "loss": [1, 1, 1, 1]})
    found = curve().predict(table)
    for s, p, loss in zip((0, 0, 100, 2500), (0, 300, 0, 10_000), found):
        assert loss == pytest.approx(by_hand(s, p, **PARAMETERS), rel=1e-12)
    assert found[0] == pytest.approx(PARAMETERS["A"] + PARAMETERS["E"])
    assert table["loss"].tolist() == [1, 1, 1, 1]
    renamed = of_counts({"sft": [3], "dpo": [4]}, examples="sft", pairs="dpo")
    assert renamed["s"] == 4 and renamed["p"] == 5


@pytest.mark.parametrize("budget", [Budget(total=50), Budget(total=3000), Budget(total=3000, example=4.0, pair=0.5)])
def test_the_best_split_is_the_best_of_all(budget):
    found = best_split(curve(), budget, shares=101)
    least = math.inf
    for f in range(101):
        s, p = math.floor(f / 100 * budget.total / budget.example + 1e-9), \
            math.floor((1 - f / 100) * budget.total / budget.pair + 1e-9)
        least = min(least, by_hand(s, p, **PARAMETERS))
    assert found.loss == pytest.approx(least)
    assert found.examples * budget.example + found.pairs * budget.pair <= budget.total * (1 + 1e-9)
    assert found.loss == pytest.approx(by_hand(found.examples, found.pairs, **PARAMETERS))


def test_small_budgets_go_to_examples_large_ones_to_pairs_and_a_cold_start_needs_a_few_examples():
    shares = [best_split(curve(), Budget(total=total)).share for total in (30, 1000, 30_000)]
    assert shares[0] == 1 and shares[0] > shares[1] > shares[2] > 0
    cold = best_split(curve(), Budget(total=1000))
    all_pairs = by_hand(0, 1000, **PARAMETERS)
    tenth = by_hand(100, 900, **PARAMETERS)
    assert all_pairs - tenth > 0.3 > tenth - cold.loss
    assert best_split(curve(w0=1.0, a=0.0), Budget(total=1000)).share == 0  # pairs that serve a base model
    assert best_split(curve(b=0.0), Budget(total=1000)).share == 1


def test_refusals():
    with pytest.raises(MixwellError, match="no column 'pairs'; it has examples"):
        of_counts({"examples": [1]})
    with pytest.raises(MixwellError, match="'pairs' holds a count below 0"):
        of_counts({"examples": [1], "pairs": [-1]})
    for values in ({"total": 0}, {"total": 1, "example": 0}, {"total": 1, "pair": -1}):
        with pytest.raises(ValueError, match="expected a number above 0"):
            Budget(**values)
