"""Measurements are made once, again when they were disturbed, and never cost more than the time of measuring."""

import json

import pytest

from mixwell.core import machine, measured


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(measured, "_USED", {})
    monkeypatch.setattr(machine, "is_busy", lambda threads: False)


def share_of_the_core(monkeypatch, share):
    """A clock on which this process has its core for `share` of the time."""
    now = iter(range(1, 1000))
    wall = [0.0]

    def perf_counter():
        wall[0] = float(next(now))
        return wall[0]

    monkeypatch.setattr(measured.time, "perf_counter", perf_counter)
    monkeypatch.setattr(measured.time, "process_time", lambda: share * wall[0])


def test_a_measurement_is_made_once(monkeypatch):
    share_of_the_core(monkeypatch, 1.0)
    assert measured.kept("x", lambda: {"a": 1.0}) == {"a": 1.0}
    assert measured.kept("x", lambda: {"a": 2.0}) == {"a": 1.0}
    assert measured.kept("y", lambda: {"a": 2.0}) == {"a": 2.0}
    assert measured.disturbed() == measured.disturbed(own=True) == []


def test_what_lacks_a_field_is_measured_anew(monkeypatch):
    share_of_the_core(monkeypatch, 1.0)
    measured.kept("x", lambda: {"a": 1.0})
    measured._USED.clear()
    assert measured.kept("x", lambda: {"a": 1.0, "b": 2.0}, fields=("a", "b")) == {"a": 1.0, "b": 2.0}
    measured._USED.clear()
    assert measured.kept("x", lambda: {"a": 3.0, "b": 3.0}, fields=("a", "b")) == {"a": 1.0, "b": 2.0}


def test_a_disturbed_measurement_is_used_told_and_made_again(monkeypatch):
    share_of_the_core(monkeypatch, 0.5)
    assert measured.kept("x", lambda: {"a": 1.0}) == {"a": 1.0}
    assert measured.kept("x", lambda: {"a": 9.0}) == {"a": 1.0}, "a process never changes its mind"
    assert measured.disturbed(own=True) == measured.disturbed() == ["x"]
    assert measured.disturbed() == ["x"]
    measured._USED.clear()  # as the next process has it
    share_of_the_core(monkeypatch, 1.0)
    assert measured.kept("x", lambda: {"a": 2.0}) == {"a": 2.0} == measured.kept("x", lambda: {"a": 3.0})
    assert measured.disturbed() == []


@pytest.mark.parametrize("other", ["cpu_model", "capability"])
def test_another_processor_or_another_limit_is_measured_for_itself(monkeypatch, other):
    share_of_the_core(monkeypatch, 1.0)
    measured.kept("x", lambda: {"a": 1.0})
    monkeypatch.setattr(machine, other, lambda: "Cortex-A76, ASIMD")
    assert measured.kept("x", lambda: {"a": 2.0}) == {"a": 2.0}


@pytest.mark.parametrize("text", ["{half", "[]", '{"k": 1}', '{"k": {"values": 1, "busy": false}}'])
def test_a_broken_cache_is_measured_anew(monkeypatch, text):
    share_of_the_core(monkeypatch, 1.0)
    measured.kept("x", lambda: {"a": 1.0})
    key = next(iter(json.loads(measured.cache_file().read_text())))
    measured.cache_file().write_text(text.replace('"k"', f'"{key}"'))
    measured._USED.clear()
    assert measured.kept("x", lambda: {"a": 3.0}) == {"a": 3.0} == measured.kept("x", lambda: {"a": 4.0})


def test_a_home_that_cannot_be_written_to_costs_only_the_time(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert measured.kept("x", lambda: {"a": 1.0}) == {"a": 1.0}


def test_a_disturbed_measurement_stands_while_the_machine_is_busy(monkeypatch):
    share_of_the_core(monkeypatch, 0.5)
    measured.kept("x", lambda: {"a": 1.0})
    for busy, value in ((True, 1.0), (False, 2.0)):
        monkeypatch.setattr(measured, "_USED", {})  # as in another process
        monkeypatch.setattr(machine, "is_busy", lambda threads, busy=busy: busy)
        assert measured.kept("x", lambda: {"a": 2.0}) == {"a": value}
        assert measured.disturbed(own=True) == ["x"]
