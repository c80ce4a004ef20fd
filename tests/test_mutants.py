"""The tool that breaks methods on purpose: what it changes and what it leaves alone."""

from __future__ import annotations

import ast
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


def test_a_slow_test_file_is_waited_for_as_long_as_it_takes(tool, monkeypatch):
    clock, waited = [0.0], []

    def passes(module, path, tree, tests, patience_s):
        clock[0] += 200.0
        waited.append(patience_s)
        return True

    monkeypatch.setattr(tool, "passes", passes)
    monkeypatch.setattr(tool.time, "monotonic", lambda: clock[0])
    entry = registry.find("experts.routers.top_k")
    killed, tried, alive = tool.judge(entry, 2, [])
    assert (killed, tried, len(alive)) == (0, 2, 2) and waited == [600.0, 720.0, 720.0]
