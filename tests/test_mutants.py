"""The tool that breaks methods on purpose: what it changes and what it leaves alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mixwell.core import registry

TOOLS = Path(__file__).parents[1] / "tools"
SOURCE = '''"""Words, 1 + 2."""
import torch
SCALE = 0.5

class Config:
    width: int = 3 - 1

    def area(self, factor: float = 2.0 * 3) -> "1 - 2":
        if factor < 1:
            raise ValueError("too small: " + str(1 - factor))
        return self.width * factor

def least(x):
    f"{x + 1}"
    return -torch.min(x)

def example(generator):
    return 1 + 1
'''


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import mutants

    yield mutants
    sys.modules.pop("mutants")
    sys.modules.pop("mutants_trial")


def test_computations_are_changed_and_words_types_defaults_and_examples_are_not(tool):
    found = {(m.line, m.before, m.after) for m in tool.mutants("some.method", SOURCE, 100)}
    assert found == {(3, "0.5", "1.0"), (9, "factor < 1", "factor > 1"), (11, "self.width * factor", "self.width"),
                     (11, "self.width * factor", "self.width / factor"), (15, "-torch.min(x)", "torch.min(x)"),
                     (15, "torch.min", "torch.max")}


def test_each_mutant_differs_from_the_source_in_its_one_place_and_the_choice_repeats(tool):
    sound = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in tool.mutants("some.method", SOURCE, 100):
        broken = ast.unparse(mutant.tree).splitlines()
        assert sum(a != b for a, b in zip(sound, broken, strict=True)) == 1
    few, again = tool.mutants("some.method", SOURCE, 3), tool.mutants("some.method", SOURCE, 3)
    assert list(map(str, few)) == list(map(str, again)) and len(few) == 3


METHOD = """LIMIT = 2.0

def area(width, height):
    if width < 0:
        return 0.0
    return width * height

def bounded(x):
    while x > LIMIT:
        x = x - 1.0
    return x

def adder(n):
    return lambda x: x + n

def alone(x):
    return x - 3.0
"""
TESTS = """from broken_method import adder, area, bounded

def test_area():
    assert area(2.0, 3.0) == 6.0 and area(-1.0, 3.0) == 0.0

def test_bounded():
    assert bounded(5.0) == 2.0

def test_adder():
    assert adder(2)(3) in (5, 6)
"""
FATES = {  # a change -> whether the tests see it
    "width * height  ->  width / height": True,
    "width < 0  ->  width > 0": True,
    "x - 1.0  ->  x + 1.0": True,  # never ends
    "x - 1.0  ->  x": True,
    "2.0  ->  4.0": True,  # outside functions: imported anew
    "x + n  ->  x": True,  # closes over less: imported anew
    "0.0  ->  1.0": True,
    "1.0  ->  2.0": True,
    "x - 3.0  ->  x + 3.0": False,  # no test goes there
}


# a process of its own: to split this one off a dozen times, with all that it has imported, takes twice as long
PROGRAM = """
import ast, json, sys
tools, folder, fates = json.loads(sys.argv[1])
sys.path[:0] = [tools, folder]
import mutants, mutants_trial
from pathlib import Path

mutants_trial.LEAST_S = 1
path = Path(folder, "broken_method.py")
source = path.read_text()
tests = (str(path.with_name("test_broken_method.py")),)
workshop = mutants_trial.Workshop(mutants_trial.File("broken_method", path, ast.parse(source), tests))
made = {m.change: m for m in mutants.mutants("broken", source, 100)}
seen = {change: not workshop.passes(made[change].tree, made[change].statement) for change in fates}
print(json.dumps([workshop.sound.passed, len(workshop.sound.lines), seen, workshop.passes(ast.parse(source), 6)]))
workshop.close()
"""


@pytest.mark.slow
def test_tests_kill_what_they_see_and_nothing_else(tmp_path):
    (tmp_path / "broken_method.py").write_text(METHOD)
    (tmp_path / "test_broken_method.py").write_text(TESTS)
    given = json.dumps([str(TOOLS), str(tmp_path), list(FATES)])
    done = subprocess.run([sys.executable, "-c", PROGRAM, given], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout, done.stderr
    assert json.loads(done.stdout) == [True, 3, FATES, True]


def test_only_tests_that_reach_a_statement_are_tried_the_quickest_first(tool):
    from mutants_trial import Sound

    sound = Sound(True, {"a": 3.0, "b": 1.0, "c": 2.0}, {"a": {4, 5}, "b": {5}, "c": {4, 5}})
    assert sound.order(5) == ["b", "c", "a"] and sound.order(4) == ["c", "a"] and sound.order(9) == []
    assert sound.patience_s() == 10 + 3 * 6


def test_a_verdict_is_asked_for_again_when_method_tests_or_choice_change(tool):
    entry = registry.find("experts.routers.top_k")
    assert tool.key(entry, 6, []) == tool.key(entry, 6, [])
    assert len({tool.key(entry, 6, []), tool.key(entry, 7, []), tool.key(entry, 6, ["a  ->  b"])}) == 3
    assert tool.tests_of(entry.path)[0].endswith("tests/experts/routers/test_top_k.py")


def test_shares_are_told_room_by_room(tool):
    told = tool.shares({"density.a": tool.Verdict(1, 2), "experts.b": tool.Verdict(4, 6)})
    assert [line.split() for line in told.splitlines()] == [
        ["density", "1", "of", "2", "mutants", "killed:", "50.0%"],
        ["experts", "4", "of", "6", "mutants", "killed:", "66.7%"],
        ["all", "5", "of", "8", "mutants", "killed:", "62.5%"]]


def test_nine_of_ten_were_killed_and_what_is_excused_is_still_made(tool):
    import tomllib

    saved = json.loads(tool.SAVED.read_text(encoding="utf-8"))
    excused = tomllib.loads(tool.EQUIVALENT.read_text(encoding="utf-8"))
    methods = {entry.name: entry for entry in registry.entries()}
    assert saved.keys() <= methods.keys() and excused.keys() <= methods.keys()
    assert all(len(one["survivors"]) == one["tried"] - one["killed"] for one in saved.values())
    assert sum(one["killed"] for one in saved.values()) >= 0.9 * sum(one["tried"] for one in saved.values())
    for name, reasons in excused.items():
        made = {m.change for m in tool.mutants(name, methods[name].path.read_text(encoding="utf-8"), 6)}
        assert reasons.keys() <= made and all(len(reason) > 20 for reason in reasons.values()), name
