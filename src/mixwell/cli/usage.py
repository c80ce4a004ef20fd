"""A method's options and how to use it, read from its source without importing it."""

from __future__ import annotations

import ast
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

from mixwell.core.registry import ROOT, Entry

RECIPES = {  # family -> the entry of a recipe that names a method of it
    "experts.routers": "model: {{num_experts: 8, router: {{method: {name}{options}}}}}",
    "experts.layers": "model: {{channel_mixer: {{method: {full}{options}}}}}",
    "experts.balance": "model: {{num_experts: 8, balance: {{{name}: 0.01}}}}",
    "experts.overflow": "model: {{num_experts: 8, capacity_factor: 1.25, overflow: {{method: {name}{options}}}}}",
    "sequence": "model: {{sequence_mixer: {{method: {full}{options}}}}}",
    "adapters": "stages: [{{id: base, train: {{tokens: 1M}}}}, {{id: tuned, adapt: {name}{options}, tokens: 1M}}]",
    "convert": "stages: [{{id: new, convert: {name}{options}}}]",
    "precision": "stages: [{{id: small, compress: {name}{options}}}]",
    "precision.structured": "model: {{dim: 288, channel_mixer: {{method: experts.layers.structured, hidden_dim: 1152, "
                            "structure: {{method: {name}{options}}}}}}}",
    "merge": "stages: [{{id: a, train: {{tokens: 1M}}}}, {{id: b, train: {{tokens: 1M}}}}, "
             "{{id: both, from: [a, b], merge: {name}{options}}}]",
}
WITH_OPTIONS = {"experts.balance": "model: {{num_experts: 8, balance: {{{name}: {{coefficient: 0.01{options}}}}}}}"}
COMMANDS = {  # family -> the command that applies a method of it
    "convert": "mixwell apply {full} --in MODEL --out NEW{words}",
    "precision": "mixwell apply {full} --in MODEL --out NEW{words}",
    "merge": "mixwell apply {full} --in A --in B --out NEW{words}",
    "experts.analysis": "mixwell apply {full} --in MODEL{words}",
}
FITS = "estimator"  # tag of what has scikit-learn's `fit`


def options(entry: Entry) -> list[str]:
    """The method's options, one a line: name, type, default and comment as they stand in its source.

    They are the fields of its config; of a class without one the parameters of its constructor, which a base class may
    have.
    """
    config = _config(entry)
    if config is not None:
        return [" ".join(line.strip() for line in _source(path)[f.lineno - 1 : f.end_lineno]) for path, f in config]
    found = _class(_tree(entry.path), entry.object_name)
    return [_written(*one) for one in _parameters(entry, found)] if found is not None else []


def about(entry: Entry) -> str:
    """The docstring of the method's object: what its parameters mean; empty where it only points to the card."""
    found = _object(entry)
    text = (ast.get_docstring(found) or "") if found is not None else ""
    return "" if "see the module's card" in text and "\n" not in text else text


def usage(entry: Entry) -> list[tuple[str, str]]:
    """(where, line) for each way to use the method: `recipe`, `command`, `python`."""
    needed = _needed(entry)
    last = entry.name.rpartition(".")[2]
    words = {"name": last, "full": entry.name, "options": "".join(f", {name}: ..." for name in needed),
             "words": "".join(f" {name}=..." for name in needed)}
    form = WITH_OPTIONS.get(entry.family) if needed else None
    form = form or RECIPES.get(entry.family)
    lines = [("recipe", form.format(**words))] if form else []
    lines += [("command", COMMANDS[entry.family].format(**words))] if entry.family in COMMANDS else []
    return lines + [("python", line) for line in _python(entry, needed)]


def _python(entry: Entry, needed: list[str]) -> Iterator[str]:
    if entry.family == "experts.analysis":
        yield "from mixwell.run.analyse import analyse"
        yield f'analyse("{entry.name}", "MODEL")'
        return
    if entry.family in COMMANDS:
        yield f'mixwell.apply("{entry.name}", "MODEL"{"".join(f", {name}=..." for name in needed)})'
        return
    apart = _config(entry) is not None and _own_config(entry) is None
    names = ["Config", entry.object_name] if apart else [entry.object_name]
    yield f"from mixwell.{entry.name} import {', '.join(names)}"
    made = f"Config({', '.join(f'{name}=...' for name in needed)})"
    if entry.family == "adapters":
        yield f"{entry.object_name}.attach(model, None, {made}, generator)"
        return
    named = _only_named(entry)
    parts = [made if name == "config" else name for name in _required(entry)]
    words = ["config" if part == made else part for part in parts]
    given = ", ".join(f"{word}={part}" if word in named else part for word, part in zip(words, parts))
    yield f"{entry.object_name}({given}){'.fit(X)' if FITS in entry.tags else ''}"


def _needed(entry: Entry) -> list[str]:
    """Options without a default."""
    config = _config(entry) or []
    fields = [field for _, field in config]
    return [ast.unparse(field.target) for field in fields if field.value is None]


def _config(entry: Entry) -> list[tuple[Path, ast.AnnAssign]] | None:
    """The fields of the method's config, those of its bases first, with the files they stand in; None without one."""
    own = _own_config(entry)
    path, found = own or (entry.path, _class(_tree(entry.path), "Config"))
    if found is None:
        return None
    return list(_inherited(path, found).values())


def _own_config(entry: Entry) -> tuple[Path, ast.ClassDef] | None:
    """The config whose fields are the constructor's parameters: `class X(Base, config=Config)`, or a base's."""
    found = _object(entry)
    return next(_configs(entry.path, found), None) if isinstance(found, ast.ClassDef) else None


def _configs(path: Path, found: ast.ClassDef) -> Iterator[tuple[Path, ast.ClassDef]]:
    named = [ast.unparse(word.value) for word in found.keywords if word.arg == "config"]
    bases = [ast.unparse(base).partition("[")[0] for base in found.bases]
    for place, config in (_defined(path, name) for name in named):
        if config is not None:
            yield place, config
    for place, parent in (_defined(path, name) for name in bases):
        if parent is not None:
            yield from _configs(place, parent)


def _inherited(path: Path, found: ast.ClassDef) -> dict[str, tuple[Path, ast.AnnAssign]]:
    fields: dict[str, tuple[Path, ast.AnnAssign]] = {}
    for base in found.bases:
        place, parent = _defined(path, ast.unparse(base))
        if parent is not None:
            fields |= _inherited(place, parent)
    return fields | {ast.unparse(f.target): (path, f) for f in _fields(found)}


def _required(entry: Entry) -> list[str]:
    """Arguments of the object that have no default, and its `config`."""
    found = _object(entry)
    if _own_config(entry) is not None:
        return _needed(entry)
    if isinstance(found, ast.ClassDef):
        return [name for name, _, default in _parameters(entry, found) if default is None or name == "config"]
    assert found is not None
    return [name for name, _, default in _arguments(found) if default is None or name == "config"]


def _only_named(entry: Entry) -> set[str]:
    """Arguments of a function that are given by name: those that it asks so, and a config behind what is left out."""
    found = _object(entry)
    if not isinstance(found, ast.FunctionDef):
        return set()
    named = {argument.arg for argument in found.args.kwonlyargs}
    before = itertools.takewhile(lambda one: one[0] != "config", _arguments(found))
    skipped = any(default is not None for _, _, default in before)
    return named | {"config"} if skipped else named


def _parameters(entry: Entry, found: ast.ClassDef) -> list[tuple[str, str, str | None]]:
    """(name, type, default) of the constructor's parameters, of the class or of the nearest base that has some."""
    return next(_constructors(entry.path, found), [])


def _constructors(path: Path, found: ast.ClassDef) -> Iterator[list[tuple[str, str, str | None]]]:
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            yield _arguments(node)[1:]
    if any("dataclass" in ast.unparse(mark) for mark in found.decorator_list):
        yield [(ast.unparse(f.target), ast.unparse(f.annotation), _text(f.value))
               for f in _fields(found)]
    for base in found.bases:
        place, parent = _defined(path, ast.unparse(base).partition("[")[0])
        if parent is not None:
            yield from _constructors(place, parent)


def _defined(path: Path, name: str) -> tuple[Path, ast.ClassDef | None]:
    """The class that `name` means in a file: its own, one that it imports from mixwell, or one of such a module."""
    module, _, own = name.rpartition(".")
    sought = module or own
    tree = _tree(path)
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module is not None]
    source = next((node.module for node in imports if sought in [alias.name for alias in node.names]), None)
    if source is None:
        return path, _class(tree, name)
    parts = str(source).split(".") + ([module] if module else [])
    place = ROOT.parent.joinpath(*parts).with_suffix(".py")
    return place, _class(_tree(place), own) if place.is_file() else None


def _arguments(function: ast.FunctionDef) -> list[tuple[str, str, str | None]]:
    """(name, type, default) of each argument; None where there is no default."""
    spec = function.args
    plain = [*spec.posonlyargs, *spec.args]
    required = len(plain) - len(spec.defaults)
    defaults = [*[None] * required, *spec.defaults, *spec.kw_defaults]
    arguments = []
    for argument, default in zip([*plain, *spec.kwonlyargs], defaults):
        kind = _text(argument.annotation) or ""
        arguments.append((argument.arg, kind, _text(default)))
    return arguments


def _text(node: ast.expr | None) -> str | None:
    return None if node is None else ast.unparse(node)


def _written(name: str, kind: str, default: str | None) -> str:
    text = f"{name}: {kind}" if kind else name
    return text if default is None else f"{text} = {default}"


def _object(entry: Entry) -> ast.ClassDef | ast.FunctionDef | None:
    for node in _tree(entry.path).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == entry.object_name:
            return node
    return None


def _class(tree: ast.Module, name: str) -> ast.ClassDef | None:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    return None


def _fields(found: ast.ClassDef) -> list[ast.AnnAssign]:
    annotated = [node for node in found.body if isinstance(node, ast.AnnAssign)]
    return [node for node in annotated if _is_field(node)]


def _is_field(node: ast.AnnAssign) -> bool:
    """Whether an annotation makes a field of a dataclass, and is no mark of another kind."""
    for part in ast.walk(node.annotation):
        if isinstance(part, ast.Name) and part.id in ("ClassVar", "KW_ONLY"):
            return False
    return True


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _source(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
