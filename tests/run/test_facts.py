"""Findings about files, kept until one of them changes."""

import os

import pytest

from mixwell.run import facts


@pytest.fixture(autouse=True)
def later(tmp_path, monkeypatch):
    """A cache of the test's own, and a clock by which all files are old enough."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(facts.time, "time_ns", lambda: 2**62)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    return path


class Count:
    """A finding that knows how often it was made."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1
        return {"times": self.times}


def rewritten(path):
    """The same size and, as far as a program can set it, the same time."""
    before = path.stat()
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path):
    other = path.with_name("other")
    other.write_text("one")
    os.replace(other, path)


def test_found_once_while_nothing_changes(file):
    find = Count()
    assert [facts.kept("x", [file], find)["times"] for _ in range(3)] == [1, 1, 1]
    assert facts.kept("y", [file], find)["times"] == 2, "another question"
    assert facts.kept("x", [], find)["times"] == 3, "fewer files"


@pytest.mark.parametrize("change", [lambda p: p.write_text("longer"), rewritten, replaced])
def test_a_change_is_seen(file, change):
    find, before = Count(), facts.state([file])
    facts.kept("x", [file], find)
    change(file)
    assert facts.kept("x", [file], find)["times"] == 2 and facts.state([file]) != before


def test_what_changed_a_moment_ago_is_not_kept(file, monkeypatch):
    find = Count()
    monkeypatch.setattr(facts.time, "time_ns", lambda: file.stat().st_ctime_ns + facts.TICK_NS - 1)
    assert [facts.kept("x", [file], find)["times"] for _ in range(2)] == [1, 2]
    monkeypatch.setattr(facts.time, "time_ns", lambda: file.stat().st_ctime_ns + facts.TICK_NS + 1)
    assert [facts.kept("x", [file], find)["times"] for _ in range(2)] == [3, 3]


def test_only_the_newest_stay(file, monkeypatch):
    monkeypatch.setattr(facts, "MOST", 2)
    find = Count()
    for what in "abc":
        facts.kept(what, [file], find)
    assert facts.kept("c", [file], find)["times"] == 3 and facts.kept("a", [file], find)["times"] == 4


def test_a_broken_cache_is_found_anew(file):
    find = Count()
    facts.kept("x", [file], find)
    facts.cache_file().write_text("{half")
    assert facts.kept("x", [file], find)["times"] == 2
