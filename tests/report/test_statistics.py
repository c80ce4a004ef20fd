"""What a few seeds can say: exact t, paired tests, Holm's correction, against scipy."""

import math
import random

import pytest
from scipy import stats

from mixwell.report.statistics import differences, holm, interval, paired_p, quantile, within


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30])
def test_students_distribution_is_exact(freedom):
    for t in (0.0, 0.1, 1.0, 4.3, 40.0):
        assert within(t, freedom) == pytest.approx(1 - 2 * stats.t.sf(t, freedom), abs=1e-13)
    assert quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-10)


def test_paired_test_and_interval_agree_with_scipy():
    draws = random.Random(0)
    a, b = [draws.gauss(0, 1) for _ in range(5)], [draws.gauss(0.5, 1) for _ in range(5)]
    gaps = [x - y for x, y in zip(a, b)]
    found = stats.ttest_rel(a, b)
    low, high = found.confidence_interval()
    assert paired_p(gaps) == pytest.approx(found.pvalue)
    assert (interval(gaps).low, interval(gaps).high) == (pytest.approx(low), pytest.approx(high))


def test_holm_steps_down_and_never_falls():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9})
    assert found == pytest.approx({"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.9})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_equal_gaps_are_told_from_no_gap():
    assert paired_p([0.0, 0.0, 0.0]) == 1.0 and paired_p([0.5, 0.5, 0.5]) == 0.0
    assert math.isnan(paired_p([0.5])) and math.isnan(interval([0.5]).half)


def test_differences_pair_by_seed_and_correct_for_their_number():
    base = {0: 1.0, 1: 2.0, 2: 3.0}
    found = differences({"a": {0: 0.9, 1: 1.89, 2: 2.91}, "b": {1: 2.5, 5: 9.0}, "c": {7: 1.0}}, base)
    assert set(found) == {"a", "b"}
    assert found["b"].interval.mean == 0.5 and math.isnan(found["b"].p) and not found["b"].supported
    assert found["a"].supported and found["a"].p_holm == found["a"].p, "a lone seed is no comparison to correct for"
