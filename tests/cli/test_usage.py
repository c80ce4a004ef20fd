"""What `show` says of using a method, held against what the method takes."""

import ast
import inspect
import os
import subprocess
import sys
from dataclasses import fields

import pytest
import yaml

from mixwell.cli import completion, usage
from mixwell.core import registry
from mixwell.core.config import to_dict
from mixwell.run import recipe
from tests.every import every

ENTRIES = registry.entries()
VALUES = {"num_heads": "4", "vocab_size": "2048", "sizes": "[1, 1, 1, 1, 1, 1, 1, 1]", "num_keys": "64",
          "members": "[0, 1, 2, 3, 4, 5, 6, 7]", "structure": "{method: low_rank, rank: 16}"}
BY_VALUE = "experts.layers.stratified"  # its constructor computes with a tensor, so that no recipe can check its shape
APART = ("adapters", "convert", "precision", "merge")  # whose recipes have stages
IN_RECIPES = [e for e in ENTRIES if e.family in usage.RECIPES and e.family not in APART and e.name != BY_VALUE]


def names(entry):
    return [line.partition(":")[0].partition(" =")[0] for line in usage.options(entry)]


@every(ENTRIES)
def test_options_are_those_that_python_sees(entry):
    config = getattr(entry.load(), "_config_class", getattr(entry.module(), "Config", None))
    if config is not None:
        assert names(entry) == [f.name for f in fields(config)]
    elif inspect.isclass(entry.load()):
        assert names(entry) == list(inspect.signature(entry.load()).parameters)


@every(ENTRIES)
def test_the_call_is_one_that_binds(entry):
    lines = [line for where, line in usage.usage(entry) if where == "python"]
    if entry.family in usage.COMMANDS:
        assert entry.name in lines[-1]
        return
    call = ast.parse(lines[-1], mode="eval").body
    call = call.func.value if lines[-1].endswith(".fit(X)") else call
    called = entry.load()
    if isinstance(call.func, ast.Attribute):
        called = getattr(called, call.func.attr)
    named = {word.arg: object() for word in call.keywords}
    bound = inspect.signature(called).bind(*[object()] * len(call.args), **named)
    bound_config = [name for name in bound.arguments if name == "config"]
    written = [ast.unparse(a).startswith("Config(") for a in call.args]
    by_name = [ast.unparse(word.value).startswith("Config(") for word in call.keywords if word.arg == "config"]
    assert sum(written) + sum(by_name) == len(bound_config)
    if sum(written):
        assert list(bound.arguments).index("config") == written.index(True)
    scope = {}
    exec(lines[0], scope)
    assert scope[entry.object_name] is entry.load()


@pytest.mark.parametrize("entry", IN_RECIPES, ids=lambda e: e.name)
def test_the_recipe_is_one_that_names_the_method(entry, tmp_path):
    line = dict(usage.usage(entry))["recipe"]
    for name, value in VALUES.items():
        line = line.replace(f"{name}: ...", f"{name}: {value}")
    line = line.replace("...", "16")
    line = line.replace("conditioned}", "conditioned, labels: 2}")  # by default it goes by labels, and asks how many
    (tmp_path / "r.yaml").write_text(line)
    chosen = recipe.read(tmp_path / "r.yaml")
    model = next(s for s in recipe.stages(chosen) if s.id == "model").config.model(2048)
    assert entry.name.rpartition(".")[2] in str(to_dict(model)), yaml.safe_load(line)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.family == "adapters"], ids=lambda e: e.name)
def test_an_adapter_has_a_recipe(entry, tmp_path):
    (tmp_path / "r.yaml").write_text(dict(usage.usage(entry))["recipe"])
    assert recipe.stages(recipe.read(tmp_path / "r.yaml"))[-1].config.method == entry.name


@pytest.mark.parametrize("name", ["convert.upcycle", "precision.int8"])
def test_a_conversion_has_a_recipe_and_a_command(name, tmp_path):
    found = dict(usage.usage(registry.find(name)))
    (tmp_path / "r.yaml").write_text(found["recipe"])
    assert recipe.stages(recipe.read(tmp_path / "r.yaml"))[-1].method == name
    assert found["command"] == f"mixwell apply {name} --in MODEL --out NEW"


@pytest.mark.parametrize("entry", [pytest.param(e, id=e.name) for e in registry.family("merge") if e.family == "merge"])
def test_a_merge_has_a_recipe_and_a_command(entry, tmp_path):
    found = dict(usage.usage(entry))
    (tmp_path / "r.yaml").write_text(found["recipe"])
    assert recipe.stages(recipe.read(tmp_path / "r.yaml"))[-1].method == entry.name
    assert found["command"] == f"mixwell apply {entry.name} --in A --in B --out NEW"


def test_an_estimators_parameters_are_explained():
    entry = registry.find("density.mixtures.gaussian")
    found = "\n".join(usage.options(entry))
    assert 'covariance_type: str = "full"' in found and "reg_covar" in found and usage.about(entry)
    assert usage.about(registry.find("experts.routers.top_k")) == "", "the card says it all"


def test_a_shell_completes_names_without_torch():
    assert completion.methods("experts.routers.top") == ["experts.routers.top_k"]
    assert completion.methods("top_") == ["top_k"] and completion.methods("switc") == ["switch"]
    assert "experts.routers" in completion.places("exp") and completion.places("experts.routers.hash")
    assert completion.applied("up") == ["upcycle"] and completion.applied("top_k") == []
    code = ("import sys\nfrom mixwell.cli.main import app\n"
            "try:\n    app(prog_name='mixwell')\nfinally:\n    assert 'torch' not in sys.modules")
    asked = {"_MIXWELL_COMPLETE": "complete_bash", "COMP_WORDS": "mixwell show top", "COMP_CWORD": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked})
    assert "top_k" in done.stdout.split() and "Error" not in done.stderr, done
