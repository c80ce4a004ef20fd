"""Numbers in words for people."""

import math

import pytest

from mixwell.core import units


def plain(text):
    return text.replace("\u202f", " ")


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (2.41449, "2.41"), (0.03125, "0.0312"), (9.996, "10.0"), (999_999, "1.00 × 10⁶"), (123_456, "123 000"),
    (3.2e-6, "3.20 × 10⁻⁶"), (-4.1e-11, "−4.10 × 10⁻¹¹"), (-0.5, "−0.500"), (math.nan, "–"), (None, "–"), (True, "–"),
])
def test_number(value, text):
    assert plain(units.number(value)) == text


@pytest.mark.parametrize(("value", "unit", "text"), [
    (12_345_678, "", "12.3 M"), (3.2e12, "FLOP", "3.20 TFLOP"), (950, "B", "950 B"),
    (999_600, "B", "1.00 MB"), (7, "", "7"), (0.25, "s", "0.250 s"), (math.inf, "B", "–"),
])
def test_si(value, unit, text):
    assert plain(units.si(value, unit)) == text


@pytest.mark.parametrize(("value", "text"), [
    (0.0521, "52 ms"), (0.0996, "0.10 s"), (0.4231, "0.42 s"), (12.34, "12.3 s"), (59.99, "1 min 00 s"),
    (245, "4 min 05 s"), (7620, "2 h 07 min"), (None, "–")])
def test_seconds(value, text):
    assert plain(units.seconds(value)) == text


def test_percent_fixed_whole_and_tick():
    assert plain(units.percent(0.0333)) == "3.3 %"
    assert plain(units.percent(0.02, 0, sign=True)) == "+2 %" and plain(units.percent(-0.02, 0, sign=True)) == "−2 %"
    assert units.fixed(-1.23456, 3) == "−1.235" and units.fixed("x", 2) == "–"
    assert plain(units.whole(1234567.4)) == "1 234 567"
    assert [plain(units.tick(v)) for v in (0, 250_000, 1.5e6)] == ["0", "250 k", "1.5 M"]


def test_one_and_several():
    assert [units.counted(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert units.counted(1, "column is", "columns are") == "1 column is"
    assert units.counted(3, "column is", "columns are") == "3 columns are"
