"""The rule: intervals by hand, wrong decisions as often as promised, power as it is stated."""

import numpy as np
import pytest
from scipy.stats import t as student

from mixwell.claims import pages, rule

TRIALS = 20_000


def decisions(gains, comparisons=1, margin=0.0):
    """(share held, share contradicted) of rows of gains [trials, comparisons, seeds] under the rule, by numpy alone."""
    undecided = np.ones(len(gains), bool)
    held = contradicted = 0
    for count in rule.LOOKS:
        seen = gains[:, :, :count]
        mean, error = seen.mean(-1), seen.std(-1, ddof=1) / count**0.5
        below = mean - student.ppf(1 - rule.LEVEL / 2, count - 1) * error
        above = mean + student.ppf(1 - rule.LEVEL / 2 / comparisons, count - 1) * error
        wins = undecided & (below > margin).all(1)
        loses = undecided & (above < margin).any(1)
        held, contradicted = held + wins.sum(), contradicted + loses.sum()
        undecided &= ~(wins | loses)
    return held / len(gains), contradicted / len(gains)


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(size=(TRIALS, 2, rule.LOOKS[-1]))


def test_an_effect_that_is_the_margin_is_decided_in_one_of_twenty_at_most(noise):
    held, contradicted = decisions(noise[:, :1])
    assert 0.02 < held <= rule.ERROR / 2 + 0.002 and 0.02 < contradicted <= rule.ERROR / 2 + 0.002
    assert held + contradicted <= rule.ERROR
    held, contradicted = decisions(noise[:, :1] + 0.3, margin=0.3)
    assert held + contradicted <= rule.ERROR


def test_without_correction_for_looks_the_error_would_be_twice_as_large(noise, monkeypatch):
    monkeypatch.setattr(rule, "LEVEL", rule.ERROR)
    assert sum(decisions(noise[:, :1])) > 0.1


def test_conditions_keep_the_error(noise):
    """One comparison on its margin and one far above it: held too often? Both on the margin: contradicted too often?"""
    far = noise + np.array([0.0, 3.0])[:, None]
    assert decisions(far, comparisons=2)[0] <= rule.ERROR / 2 + 0.002
    assert decisions(noise, comparisons=2)[1] <= rule.ERROR / 2 + 0.002


def test_power_is_as_stated(noise):
    for size, stated in rule.POWER.items():
        found, wrong = decisions(noise[:, :1] + size)
        assert stated - 0.01 < found < stated + 0.02, f"{found:.3f} at {size}"
        assert wrong < 0.001
    assert "66% at 0.5, 99% at 1, 100% at 2" in pages.rule()


def test_decisions_are_those_of_the_simulation(noise):
    for gains in noise[:50, 0] + 0.4:
        outcome = "undecided"
        for count in rule.LOOKS:
            if outcome == "undecided":
                outcome = rule.interval(list(gains[:count])).against(0.0)
        expected = decisions(gains[None, None])
        assert (outcome == "held", outcome == "contradicted") == expected


def test_an_interval_is_students():
    gains = [0.1, 0.4, 0.2, 0.5, 0.3, 0.6, 0.2, 0.4]
    found = rule.interval(gains, comparisons=3)
    error = np.std(gains, ddof=1) / 8**0.5
    assert found.mean == pytest.approx(0.3375) and found.spread == pytest.approx(np.std(gains, ddof=1))
    assert found.low == pytest.approx(0.3375 - student.ppf(1 - 0.0075, 7) * error)
    assert found.high == pytest.approx(0.3375 + student.ppf(1 - 0.0025, 7) * error)


@pytest.mark.parametrize(("low", "high", "margin", "outcome"), [
    (0.1, 0.3, 0.0, "held"), (-0.1, 0.3, 0.0, "undecided"), (-0.3, -0.1, 0.0, "contradicted"),
    (0.1, 0.3, 0.2, "undecided"), (0.1, 0.3, 0.4, "contradicted"), (-0.01, 0.3, -0.02, "held"),
    (-0.3, -0.1, -0.2, "undecided"), (0.0, 0.0, 0.0, "undecided"),
])
def test_the_margin_decides(low, high, margin, outcome):
    assert rule.Interval(0.0, 0.0, low, high).against(margin) == outcome


def test_a_claim_holds_with_all_its_conditions_and_falls_with_one():
    assert rule.together(["held", "held"]) == "held"
    assert rule.together(["held", "undecided"]) == "undecided"
    assert rule.together(["undecided", "contradicted", "held"]) == "contradicted"


def test_looks_come_one_after_another():
    assert [rule.look(n) for n in (0, 7, 8, 11, 12, 31, 32, 40)] == [0, 0, 8, 8, 12, 24, 32, 32]
    assert [rule.next_look(n) for n in (0, 7, 8, 12, 16, 24, 32)] == [8, 8, 12, 16, 24, 32, 32]
