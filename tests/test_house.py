"""The house stands: imports go down only, files stay small, cards are complete, every method has its test."""

import ast
import functools
import re
import statistics
from pathlib import Path

import pytest

from mixwell.cli import usage
from mixwell.core import registry
from mixwell.rooms import LEVELS
from tests.every import every

ROOT = Path(registry.ROOT)
TESTS = Path(__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
SECTIONS = ("Equation", "Shapes", "Reference", "Differs", "Fails when", "Cost")


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


@functools.cache
def nodes_of(path):
    """Every node of a file's tree, in the order of `ast.walk`."""
    return tuple(ast.walk(parsed(path)))


@functools.cache
def imports(path):
    return tuple(_imports(path))


def _imports(path):
    """Every mixwell module that a file imports, those inside functions too."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "mixwell")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mixwell":
            yield from (f"{node.module}.{a.name}" for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "." * node.level


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@every([p for p in FILES if p.parent != ROOT], str)
def test_imports_go_down_and_never_sideways(path):
    own = room(path)
    assert own in LEVELS, f"{own} is no room of the house"
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] == "mixwell", f"relative import {name} in {path}"
        if name == "mixwell.__version__" or name.startswith("mixwell.rooms"):
            continue
        assert len(parts) > 1 and parts[1] in LEVELS, f"{path.name} imports the package root: {name}"
        assert parts[1] == own or LEVELS[parts[1]] < LEVELS[own], f"{path.name} of {own} imports {name}"


def test_private_modules_stay_inside_their_package():
    """A file whose name starts with an underscore is imported from its own folder and from folders below it."""
    for path in FILES:
        own = path.relative_to(ROOT).parent
        for name in imports(path):
            parts = name.split(".")[1:]
            for depth, part in enumerate(parts):
                if part.startswith("_") and ROOT.joinpath(*parts[: depth + 1]).with_suffix(".py").exists():
                    owner = Path(*parts[:depth])
                    assert own.is_relative_to(owner), f"{path.relative_to(ROOT)} imports {name}"


@functools.cache
def imported_modules():
    """Module -> the modules of the package that it imports, inside functions and for type checkers alone as well."""
    paths = {".".join(("mixwell", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
             for path in FILES}
    found = {}
    for own, path in paths.items():
        found[own] = set()
        for name in imports(path):
            while name and name not in paths:  # what is imported from a module is no module
                name = name.rpartition(".")[0]
            found[own].add(name)
        found[own] -= {own, ""}
    return found


def circle(imported):
    """Modules that import each other, the first one again at the end; empty where there are none."""
    left = imported
    while free := {own for own, others in left.items() if not others & set(left)}:
        left = {own: others for own, others in left.items() if own not in free}
    if not left:
        return []
    walk = [min(left)]
    while walk[-1] not in walk[:-1]:
        walk.append(min(left[walk[-1]] & set(left)))
    return walk[walk.index(walk[-1]) :]


def test_modules_import_each_other_in_no_circle():
    found = circle(imported_modules())
    assert not found, f"a circle: {' -> '.join(found)}; move what they share into a module below them"


def test_a_circle_of_modules_is_found():
    assert circle({"a": {"b"}, "b": {"d"}, "c": {"b"}, "d": {"c", "e"}, "e": set()}) == ["b", "d", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert {"mixwell.lm.network", "mixwell.lm.tokenizer"} < imported_modules()["mixwell.lm.model"]
    assert "mixwell.lm.model" in imported_modules()["mixwell.run.paths"]  # inside a function and for type checkers


METHODS = registry.entries()


# Families of density from the lowest: a method may name methods of its own family and of lower ones.
DENSITY = {"values": 0, "mixtures": 1, "selection": 2} | dict.fromkeys(
    ("regression", "clustering", "latent", "processes", "graphs", "circuits", "robust", "networks"), 3)


@every(sorted((ROOT / "density").glob("*/**/*.py")), str)
def test_families_of_density_name_lower_families_openly(path):
    own = path.relative_to(ROOT / "density").parts[0]
    methods = {f"mixwell.{e.name}" for e in registry.family("density")}
    for name in imports(path):
        if not name.startswith("mixwell.density.") or (family := name.split(".")[2]) not in DENSITY or family == own:
            continue
        assert DENSITY[family] < DENSITY[own], f"{own} imports {name} of a family that is no lower"
        assert name.rpartition(".")[0] in methods, f"{name} is private to {family}"


def test_methods_of_density_name_each_other_in_no_circle():
    methods = {f"mixwell.{e.name}": e.path for e in registry.family("density")}
    named = {own: {name.rpartition(".")[0] for name in imports(path)} & set(methods) for own, path in methods.items()}
    while named:
        free = {own for own, others in named.items() if not others & set(named)}
        assert free, f"a circle among {', '.join(sorted(named))}"
        named = {own: others for own, others in named.items() if own not in free}


@every([entry for entry in METHODS if entry.room != "density"])
def test_a_method_imports_no_other_method(entry):
    others = {f"mixwell.{e.name}" for e in registry.entries() if e.room == entry.room} - {f"mixwell.{entry.name}"}
    for name in imports(entry.path):
        assert name not in others and name.rpartition(".")[0] not in others, f"imports the method {name}"


@every(METHODS)
def test_a_card_is_complete(entry):
    text = entry.card_text()
    for section in SECTIONS:
        found = re.search(rf"^\*\*{section}:\*\* (.+)", text, re.MULTILINE)
        assert found and found.group(1).strip(), f"the card lacks **{section}:**"
    source = entry.path.read_text()
    # some take their options in __init__
    assert "class Config" in source or usage.options(entry)
    assert "def example(" in source


# Tags choose checks of a family's contract suite; those of density are listed in its own.
TAGS = {
    "experts.routers": {"token-choice", "batch-invariant", "exact-k", "simplex", "dense-at-full-k", "static"},
    "experts.layers": {"tokenwise", "non-causal", "cross-example", "router"},
    "experts.balance": {"one-at-balance", "own-inputs"},
    "experts.overflow": {"draws", "drops", "positional", "permutation-equivariant"},
    "experts.analysis": {"weights"},
    "merge": {"elementwise", "averages", "ordered", "base", "optional-base", "surveys", "overviews", "statistics",
              "checkpoints"},
    "adapters": {"matrix", "experts", "mixture", "inexact-start", "text"},
    "precision": {"budgeted", "codes", "nearest", "calibrated", "narrower", "zeros"},
    "precision.sparse": {"weights", "static", "format", "search"},
    "precision.structured": {"factorises"},
    "sequence": {"recurrent", "positions", "router", "estimated-gradient"},
    "scaling.laws": {"law", "budget"},
    "data.mixing": {"own"},
    "data.selection": {"distinct"},
    "parallel.federated": {"rules"},
}
SUITES = {"scaling.laws": "scaling"}


@every([entry for entry in METHODS if entry.room != "density"])
def test_a_method_has_no_tag_that_no_suite_reads(entry):
    assert entry.tags <= TAGS.get(entry.family, set())


@pytest.mark.parametrize("family", TAGS)
def test_every_tag_is_read_by_its_suite(family):
    suite = (TESTS / "contracts" / f"test_{SUITES.get(family, family.rpartition('.')[2])}.py").read_text()
    assert all(f'"{tag}"' in suite for tag in TAGS[family])
    assert TAGS[family] <= set().union(*(e.tags for e in registry.family(family)))


@every(METHODS)
def test_a_method_has_a_test_file_of_its_own(entry):
    name = entry.name.rpartition(".")[2]
    expected = TESTS.joinpath(*entry.name.split(".")[:-1], f"test_{name}.py")
    assert expected.exists() and "assert" in expected.read_text(), f"{expected.relative_to(TESTS)} is missing"


def own_options(entry):
    """Names of the options that a method's own file declares; what its family shares is the family's to test."""
    classes = [node for node in parsed(entry.path).body if isinstance(node, ast.ClassDef) and node.name == "Config"]
    fields = [field.target.id for node in classes for field in node.body if isinstance(field, ast.AnnAssign)]
    return [name for name in fields if name != "_"]  # from there on by keyword


@every([entry for entry in METHODS if own_options(entry)])
def test_a_method_sets_every_option_of_its_own_in_its_test(entry):
    name = entry.name.rpartition(".")[2]
    text = TESTS.joinpath(*entry.name.split(".")[:-1], f"test_{name}.py").read_text()
    unset = [option for option in own_options(entry) if not re.search(rf"\b{option}\b['\"]?\s*[=:,\])]", text)]
    assert not unset, f"no test of {entry.name} sets {', '.join(unset)}"


def test_files_and_functions_stay_small():
    long = []
    for path in FILES:
        source = path.read_text()
        limit = 400 if "\n@method(" in source else 500
        if source.count("\n") > limit:
            long.append(f"{path.relative_to(ROOT)}: {source.count(chr(10))} lines")
        for node in nodes_of(path):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 80:
                long.append(f"{path.relative_to(ROOT)}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert not long, "; ".join(long)


def density_of_lines(path):
    """(expression nodes a body line, body lines, name) of every function of a file."""
    lines = path.read_text().splitlines()
    for node in nodes_of(path):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        if body:
            written = [line.strip() for line in lines[body[0].lineno - 1 : node.end_lineno]]
            count = sum(bool(line) and not line.startswith("#") for line in written)
            nodes = sum(isinstance(part, ast.expr) for statement in body for part in ast.walk(statement))
            yield nodes / count, count, f"{path.relative_to(ROOT)}:{node.name}"


MIDDLE, MOST = 6.5, 11  # expression nodes a body line: of a room's functions in the median, and of any one


@pytest.mark.parametrize("name", sorted({room(path) for path in FILES if path.parent != ROOT}))
def test_a_line_holds_one_idea(name):
    found = [f for path in FILES if room(path) == name for f in density_of_lines(path)]
    above = [f"{where} ({nodes:.1f})" for nodes, _, where in found if nodes > MOST]
    assert not above, f"more than {MOST} expression nodes a line: " + ", ".join(above)
    middle = statistics.median(nodes for nodes, count, _ in found if count >= 4)
    assert middle <= MIDDLE, f"{middle:.2f} expression nodes a line in the median of the room's functions"


def test_core_stays_small():
    lines = sum(p.read_text().count("\n") for p in (ROOT / "core").glob("*.py"))
    assert lines <= 1500, f"core has {lines} lines; something must leave"


def test_public_things_have_docstrings():
    bare = []
    for path in FILES:
        for node in parsed(path).body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                bare.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert not bare, ", ".join(bare)


def test_nothing_is_unpickled_or_executed():
    for path in FILES:
        for node in nodes_of(path):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"torch.load", "pickle.load", "pickle.loads", "eval", "exec", "joblib.load",
                                      "yaml.unsafe_load"}, f"{path.name} calls {called}"
                if called == "yaml.load":
                    assert "(yaml.SafeLoader)" in path.read_text(), f"{path.name}: its YAML loader is not a safe one"
                if called.endswith("np.load"):
                    assert "allow_pickle=True" not in ast.unparse(node), path.name
