"""Who won at an equal budget: clear wins, ties, what cannot be compared."""

import math
import random

import numpy as np
import pytest

from mixwell.report.verdict import Curve, fit_at, judge, student


def curve(name, loss, *, steps=100, per_step=10, noise=0.0, seed=0, lr=None, flops=1.0):
    """A curve of `loss(share of the steps)` with a point each step."""
    draws = random.Random(seed)
    tokens = [per_step * (i + 1) for i in range(steps)]
    losses = [loss((i + 1) / steps) + draws.gauss(0, noise) for i in range(steps)]
    return Curve(name=name, loss=losses, lr=lr or (), spent={"tokens": tokens, "flops": [flops * t for t in tokens]})


def falling(floor):
    return lambda share: floor + math.exp(-5 * share)


def test_a_clear_win_with_the_values_of_the_curves():
    verdict = judge([curve("dense", falling(2.4), noise=0.01, seed=1), curve("moe", falling(2.2), noise=0.01, seed=2)],
                    "tokens")
    assert verdict.winner == "moe" and verdict.at == 1000 and verdict.amount == "1.00\u202fk"
    assert [name for name, _ in verdict.standings] == ["moe", "dense"]
    assert verdict.standings[0][1] == pytest.approx(2.2 + math.exp(-5), abs=0.02)
    assert verdict.gap == pytest.approx(0.2, abs=0.03) and 0 < verdict.noise < 0.05


def test_a_tie_has_no_winner():
    for seed in range(5):
        verdict = judge([curve("a", falling(2.4), noise=0.05, seed=seed),
                         curve("b", falling(2.399), noise=0.05, seed=seed + 50)], "tokens")
        assert verdict.winner == "" and verdict.obstacle == "" and verdict.gap < verdict.noise


def test_noise_that_both_share_does_not_hide_a_small_gap():
    """The same batches make both curves rise and fall together; only their differences count."""
    verdict = judge([curve("a", falling(2.40), noise=0.05, seed=3), curve("b", falling(2.39), noise=0.05, seed=3)],
                    "tokens")
    assert verdict.winner == "b" and verdict.noise < 1e-6
    apart = judge([curve("a", falling(2.40), noise=0.05, seed=3), curve("b", falling(2.39), noise=0.05, seed=4)],
                  "tokens")
    assert apart.winner == ""


def test_the_budget_is_the_smallest_that_all_reached_and_curves_are_read_there():
    """A straight loss, twice the FLOPs a token: at dense's 1000 FLOP the other one stands at half its way."""
    dense = curve("dense", lambda share: 4 - share)
    moe = curve("moe", lambda share: 4 - 3 * share, flops=2.0)
    verdict = judge([dense, moe], "flops")
    assert verdict.at == 1000
    assert dict(verdict.standings) == pytest.approx({"dense": 3.0, "moe": 2.5})
    assert verdict.winner == "moe"


def test_three_branches_are_ranked_and_the_first_two_decide():
    same = [curve(n, falling(f), noise=0.05, seed=i) for i, (n, f) in enumerate((("a", 2.2), ("b", 2.2), ("c", 3.0)))]
    verdict = judge(same, "tokens")
    assert verdict.winner == "" and verdict.standings[2][0] == "c"


@pytest.mark.parametrize(("curves", "words"), [
    ([curve("only", falling(2))], "one branch only"),
    ([curve("a", falling(2)), curve("b", falling(2), steps=3)],
     "of 4 points of loss against tokens that are needed, b recorded 3"),
    ([curve("a", falling(2)), Curve(name="b", loss=[1.0] * 9, spent={"flops": [1.0] * 9})],
     "b recorded none"),
    ([curve("a", falling(2)), Curve(name="b", loss=[math.nan] * 9, spent={"tokens": range(9)})], "b recorded none"),
    ([curve("a", falling(2)), curve("late", falling(2), per_step=5000)],
     "at its first measurement, late had spent more tokens"),
])
def test_what_cannot_be_compared_says_why(curves, words):
    verdict = judge(curves, "tokens")
    assert words in verdict.obstacle and verdict.winner == "" and verdict.standings == ()


def test_a_branch_cut_off_before_its_learning_rate_fell_is_pointed_out():
    decay = [1.0] * 80 + [1 - i / 20 for i in range(20)]
    verdict = judge([curve("dense", falling(2.4), lr=decay), curve("moe", falling(2.3), lr=decay, flops=2.0)], "flops")
    (caveat,) = verdict.caveats
    words = "learning rate of dense stood at 5 % of its peak and that of moe at 100 %, which favours dense"
    assert words in caveat.replace("\u202f", " ")
    assert judge([curve("a", falling(2.4), lr=decay), curve("b", falling(2.3), lr=decay)], "tokens").caveats == ()


def test_fit_at_equals_numpy_with_the_textbook_error():
    draws = np.random.default_rng(5)
    x = np.arange(1.0, 41.0)
    y = 3 - 0.05 * x + draws.normal(0, 0.1, 40)
    value, half = fit_at(x, y, 40.0)
    near = slice(34, 40)  # the nearest 15 %
    (slope, intercept), covariance = np.polyfit(x[near], y[near], 1, cov="unscaled")
    residual = y[near] - (slope * x[near] + intercept)
    variance = (residual**2).sum() / 4 * (np.array([40.0, 1.0]) @ covariance @ np.array([40.0, 1.0]))
    assert value == pytest.approx(slope * 40 + intercept, rel=1e-9)
    assert half == pytest.approx(2.776445 * math.sqrt(variance), rel=5e-3)  # t of four degrees of freedom


@pytest.mark.parametrize("count", [5, 17, 100])
def test_fit_at_covers_the_truth_as_often_as_it_says(count):
    draws, hits = np.random.default_rng(count), 0
    x = np.arange(1.0, count + 1)
    for _ in range(300):
        value, half = fit_at(x, 2 - 0.001 * x + draws.normal(0, 0.03, count), float(count))
        hits += abs(value - 2 + 0.001 * count) <= half
    assert 0.91 <= hits / 300 <= 0.98


@pytest.mark.parametrize(("freedom", "quantile"), [(3, 3.182446), (4, 2.776445), (10, 2.228139), (30, 2.042272)])
def test_student_agrees_with_the_tables(freedom, quantile):
    assert student(freedom) == pytest.approx(quantile, rel=0.01)
