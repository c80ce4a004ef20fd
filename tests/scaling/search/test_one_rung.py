"""Cost, choice and failure of one rung."""

import numpy as np
import pytest

from mixwell.scaling.search.one_rung import Config, one_rung
from mixwell.scaling.trials import Trials


def table(seed=0, count=12, most=7):
    return np.random.default_rng(seed).random((count, most))


def test_the_best_of_the_leaders_is_found_for_the_papers_cost():
    for seed in range(5):
        losses = table(seed)
        found = one_rung(Trials.tabulated(losses), Config(candidates=12, keep=4), np.random.default_rng(seed))
        leaders = sorted(range(12), key=lambda trial: losses[trial, 0])[:4]
        best = min(leaders, key=lambda trial: losses[trial, -1])
        assert found == (best, losses[best, -1], 12 + 4 * (7 - 1))


def test_a_late_rung_and_all_kept_are_the_full_search():
    losses = table()
    whole = one_rung(Trials.tabulated(losses), Config(candidates=12, keep=12), np.random.default_rng(0))
    late = one_rung(Trials.tabulated(losses), Config(candidates=12, keep=1, first=7), np.random.default_rng(0))
    assert whole.trial == late.trial == losses[:, -1].argmin() and whole.spent == late.spent == 84


def test_curves_that_cross_after_the_rung_are_missed():
    losses = [[1.0, 0.0], [0.5, 0.5]]
    assert one_rung(Trials.tabulated(losses), Config(candidates=2, keep=1), np.random.default_rng(0)).trial == 1


def test_refusals():
    for values in ({"keep": 0}, {"keep": 33}, {"first": 0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**values)
