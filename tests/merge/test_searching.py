"""The search of coefficients: a planted best is found within the budget, each point is measured once, refusals."""

import math

import pytest

from mixwell.core.errors import MixwellError
from mixwell.merge.searching import Side, search, space
from mixwell.merge.slerp import Config as Slerp
from mixwell.merge.task_arithmetic import Config

BOX = space(Config, {"weight": (0, 2)}, {"density": (0.1, 0.9)}, 2)
BEST = (0.31, 1.62, 0.44)


def bowl(values):
    return sum((value - best) ** 2 for value, best in zip(values, BEST))


def test_a_side_for_each_model_and_one_for_all():
    assert BOX.sides == (Side("weight", 0, 0, 2), Side("weight", 1, 0, 2), Side("density", None, 0.1, 0.9))
    assert BOX.options(BEST) == {"weight": [0.31, 1.62], "density": 0.44}
    assert BOX.start(Config(weight=(0.5, 3.0), density=0.0)) == (0.5, 2.0, 0.1)
    assert space(Slerp, {"t": (0, 1)}, {}, 2).sides == (Side("t", None, 0, 1),)  # one number, whatever the models


def test_a_planted_best_is_found_within_the_budget():
    asked = []

    def loss(values):
        asked.append(values)
        return bowl(values)

    start = BOX.start(Config())
    made = search(loss, BOX, start, 60, seed=3)
    assert [one.values for one in made] == asked and len(set(asked)) == len(asked) <= 60
    assert made[0].values == start and made[0].loss == bowl(start)
    best = min(made, key=lambda one: one.loss)
    assert best.loss < 2e-3 < 0.1 * bowl(start)
    assert all(side.low <= value <= side.high for one in made for side, value in zip(BOX.sides, one.values))
    assert search(loss, BOX, start, 60, seed=3) == made


@pytest.mark.parametrize("tries", [2, 3, 7])
def test_a_small_budget_is_kept_to(tries):
    assert len(search(bowl, BOX, BOX.start(Config()), tries)) == tries


def test_what_cannot_be_measured_counts_as_worst():
    made = search(lambda values: math.nan if values[0] > 1 else bowl(values), BOX, (2.0, 1.0, 0.5), 30)
    assert made[0].loss == math.inf and min(made, key=lambda one: one.loss).loss < 0.5


def test_what_is_no_range_is_told():
    with pytest.raises(MixwellError, match=r"'sparsify' is no number that this method takes; expected one of weight"):
        space(Config, {"sparsify": (0, 1)}, {}, 2)
    with pytest.raises(MixwellError, match=r"weight ranges from 1 to 1; expected a smaller number before a larger"):
        space(Config, {"weight": (1, 1)}, {}, 2)
    for vary, shared in (({}, {}), ({"weight": (0, 1)}, {"weight": (0, 1)})):
        with pytest.raises(MixwellError, match="name each option to search once"):
            space(Config, vary, shared, 2)
