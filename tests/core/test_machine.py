"""What is told of the machine, and what a measurement makes of a few timed rows."""

import mmap

import pytest
import torch

from mixwell.core import machine


def test_threads_are_those_asked_for_then_those_of_the_surroundings_then_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert (machine.threads(5), machine.threads()) == (5, 3)
    for nothing in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert machine.threads() == machine.physical_cores() >= 1


def test_a_quota_bounds_the_cores(tmp_path):
    (tmp_path / "cpu.max").write_text("250000 100000")
    assert machine._quota(tmp_path / "cpu.max") == 2
    (tmp_path / "cpu.max").write_text("max 100000")
    assert machine._quota(tmp_path / "cpu.max") > 1000 and machine._quota(tmp_path / "none") > 1000


def test_the_peak_starts_anew():
    machine.reset_peak()
    before = machine.peak_bytes()
    with mmap.mmap(-1, 200_000_000) as held:  # given back to the system whatever the allocator's settings
        held.write(b"x" * 200_000_000)
        raised = machine.peak_bytes()
    assert raised >= before + 190e6
    machine.reset_peak()
    assert machine.peak_bytes() <= raised - 190e6


def test_description_names_what_decides_the_numbers():
    found = machine.describe(2)
    assert found["threads"] == 2 and found["torch"] == torch.__version__
    assert found["cpu"] and found["memory_bytes"] > 1e8


@pytest.mark.parametrize(("load", "threads", "busy"), [(0.3, 4, False), (0.6, 4, True), (2.0, 2, False),
                                                       (3.0, 2, True), (9.0, 1, True)])
def test_a_machine_is_busy_where_fewer_cores_are_free_than_wanted(monkeypatch, load, threads, busy):
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert machine.is_busy(threads) == busy
