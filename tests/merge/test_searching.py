"""The search of coefficients: a planted best is found within the budget, each point is measured once, refusals."""

import math

import pytest

from mixwell.core.errors import MixwellError
from mixwell.merge.passthrough import Config as Passthrough
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


def test_values_of_a_narrow_side_stay_on_it_and_apart():
    narrow = space(Config, {}, {"density": (0.00004, 1), "weight": (1e-5, 5e-5)}, 2)
    low, middle, high = (narrow.placed([share, share]) for share in (0.0, 0.5, 1.0))
    assert low == (0.00004, 1e-5) and middle == pytest.approx((0.5, 3e-5)) and high == (1.0, 5e-5)
    made = search(lambda values: abs(values[1] - 3.3e-5), narrow, low, 12)
    assert len({one.values[1] for one in made}) > 6
    assert {type(value) for one in made for value in one.values} == {float}


def test_options_that_are_no_place_to_start_from_are_told():
    with pytest.raises(ValueError, match="weight lists 1 values for 2 models"):
        BOX.start(Config(weight=(0.5,)))
    with pytest.raises(ValueError, match="scale has no number to start from"):
        space(Passthrough, {"scale": (0, 1)}, {}, 1).start(Passthrough())


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
