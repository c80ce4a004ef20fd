"""The README says what the result files say, and its commands exist."""

import importlib.util
import re
from pathlib import Path

from mixwell.core import registry

ROOT = Path(__file__).parents[1]


def figures(name="readme"):
    spec = importlib.util.spec_from_file_location(f"{name}_figures", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_are_those_of_the_result_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert figures().filled(text) == text, "run `python benchmarks/readme.py`"


def test_figures_of_serving_are_those_of_the_result_files(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert figures("serving_figures").filled(text) == text, "run `python benchmarks/serving_figures.py`"


def test_methods_and_files_named_there_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known = {e.name for e in registry.entries()} | {e.family for e in registry.entries()}
    for name in re.findall(r"(?<!/)\b(?:convert|experts\.(?:routers|layers|balance|analysis))\.\w+\b", text):
        if name != "experts.routers.my_router":
            assert name in known, name
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
