"""Bounds, drops, what they save, and the plateau that fools them."""

import math

import numpy as np
import pytest

from mixwell.scaling.search.rising_bandits import Config, reach, rising_bandits, survivors
from mixwell.scaling.trials import Trials


def run(losses, **options):
    trials = Trials.tabulated(losses)
    return rising_bandits(trials, Config(**options), np.random.default_rng(0)), trials


def test_reach_follows_the_slope_down_to_the_floor():
    curve = [9.0, 1.0, 0.9, 0.8, 0.7, 0.6]
    assert reach(curve, 3, Config()) == pytest.approx(0.6 - 3 * 0.1)
    assert reach(curve, 100, Config(floor=0.25)) == 0.25
    assert reach(curve, 3, Config(history=1)) == pytest.approx(0.3)
    assert reach([math.inf] * 6, 3, Config()) == math.inf


def test_an_arm_goes_exactly_when_its_reach_is_above_anothers_best():
    curves = {0: [0.5] * 5, 1: [1.0, 0.9, 0.8, 0.7, 0.6]}
    assert survivors(curves, [0, 1], 1, Config()) == [0, 1]  # reach 0.5 equals the best
    assert survivors(curves, [0, 1], 0, Config()) == [0]
    assert survivors({0: [0.5] * 4, 1: [9.0] * 4}, [0, 1], 0, Config()) == [0, 1]  # no slope yet


def test_convex_arms_lose_no_winner_and_losers_are_pulled_less():
    epochs = np.arange(1, 41)
    floors = np.array([0.1, 0.3, 0.5, 0.7])
    losses = floors[:, None] + epochs**-1.0
    found, trials = run(losses, pulls=100)
    assert found.trial == 0 and found.spent <= 100
    assert trials.reached_N[0] == 40 and trials.reached_N[3] < 15


def test_a_rest_of_alpha_pulls_ends_the_arm_that_would_win():
    losses = np.ones((2, 20))
    losses[0] = 0.9
    losses[1, 10:] = 0.0
    found, trials = run(losses, pulls=40)
    assert found.trial == 0 and trials.reached_N.tolist() == [20, 5]


def test_the_curve_is_the_best_so_far_and_the_last_round_is_cut():
    found, trials = run([[3.0, 9.0, 9.0], [4.0, 9.0, 9.0]], pulls=3)
    assert found.loss == 3.0 and trials.spent == 3


def test_refusals():
    for values in ({"pulls": 0}, {"history": 0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**values)
