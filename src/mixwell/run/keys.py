"""The key of a stage: a digest of all that decides its result, so that the same key means the same bits.

A key covers the stage's config and seed, the keys of its inputs, what it reads from outside, mixwell's source as far as
the stage can reach it, the torch version, and the number of threads (sums split over other threads round otherwise).

Of the catalogue's method files only those count that the config, the inputs' configs or the counted source itself name:
a new router leaves the runs of the others cached.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mixwell.core import registry
from mixwell.core.config import to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.files import digest
from mixwell.rooms import computing, foundation
from mixwell.run import facts
from mixwell.run.stages import KINDS, Kind, Stage

Names = frozenset[str]  # of methods
_QUOTED = re.compile(r"""["'](?=([\w.]+)["'])""")  # words between quotation marks, each of which may begin another


def stage_keys(stages: Sequence[Stage], threads: int) -> dict[str, str]:
    """Stage id -> key, for stages in an order in which inputs come first."""
    keys: dict[str, str] = {}
    methods: dict[str, Names] = {}
    code_of = functools.cache(_code)  # of a thousand stages most reach the same source
    floats = [metadata.version("torch"), threads]
    known = _method_names()
    for stage in stages:
        inherited = frozenset().union(*(methods[source] for source in stage.inputs.values()))
        said = {*_words(stage.plain_config()), stage.method}
        methods[stage.id], code = code_of(stage.kind, known & said, inherited)
        keys[stage.id] = digest({
            "kind": stage.kind, "method": stage.method, "config": stage.plain_config(),
            "seed": stage.seed if KINDS[stage.kind].draws else None,
            "inputs": {role: keys[source] for role, source in stage.inputs.items()}, "outside": _outside(stage),
            "code": code, "floats": floats if KINDS[stage.kind].floats else None})
    return keys


def _outside(stage: Stage) -> str:
    try:
        return KINDS[stage.kind].fingerprint(stage)
    except OSError as error:
        raise MixwellError(f"{stage.id}: cannot read {error.filename}: {error.strerror}.") from error


@functools.cache
def _method_names() -> Names:
    """All words that may name a method: full names and their last parts."""
    full = {entry.name for entry in registry.entries()}
    short = {name.rpartition(".")[2] for name in full}
    return frozenset(full | short)


def _code(kind_name: str, said: Names, inherited: Names) -> tuple[Names, str]:
    """The methods that a stage can reach whose config names `said`, and the digest of the source that counts."""
    kind = KINDS[kind_name]
    files = [f for room in (*foundation(), *kind.rooms) for f in _files(room)]
    files += [_source(module) for module in (kind.run.__module__, Kind.__module__)]
    known = {e.path: e for e in registry.entries()}
    plain = {f for f in files if f not in known}
    entries = [known[f] for f in files if f in known]
    if kind.any_method:
        named = frozenset(e.name for e in entries)
    else:
        named = _reachable(entries, set(said.union(*map(_literals, plain))), inherited)
    counted = plain | {e.path for e in entries if e.name in named}
    return named, _digest_files(counted)


def _reachable(entries: Iterable[registry.Entry], words: set[str], inherited: Names) -> Names:
    """Methods that `words` name, fully or by their last part, and those that these name in turn."""
    found: set[str] = set()
    while True:
        new = [e for e in entries if e.name not in found
               and (e.name in inherited or e.name in words or e.name.rpartition(".")[2] in words)]
        if not new:
            return frozenset(found) | inherited
        found |= {e.name for e in new}
        words = words.union(*(_literals(e.path) for e in new))


def _source(module: str) -> Path:
    return Path(str(sys.modules[module].__file__))


@functools.cache
def _files(room: str) -> tuple[Path, ...]:
    path = registry.ROOT / room
    return tuple(sorted(path.rglob("*.py"))) if path.is_dir() else (path,)


@functools.cache
def _literals(path: Path) -> Names:
    """The text constants of a source file; none where no quoted word in it names a method, which is seen sooner."""
    text = path.read_text(encoding="utf-8")
    quoted = _QUOTED.findall(text)
    if _method_names().isdisjoint(quoted):
        return frozenset()
    constants = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    return frozenset(value for value in constants if isinstance(value, str))


def _words(value: Any) -> Iterable[str]:
    """Every text in plain data, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from (str(key), *_words(item))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _words(item)


def _digest_files(files: Iterable[Path]) -> str:
    """Digest of names and contents; the names are told from the package, wherever it lies."""
    found = {}
    for path in files:
        found[_package_name(path)] = facts.digest_once(path)
    return digest(found)


@functools.cache
def _package_name(path: Path) -> str:
    inside = registry.ROOT.parent
    return str(path.relative_to(inside)) if path.is_relative_to(inside) else path.name


def source_digest() -> str:
    """Digest of all the source that a model's speed may hang on."""
    rooms = [_files(room) for room in computing()]
    return _digest_files(path for files in rooms for path in files)


def evaluation_key(stage_key: str, tokens_key: str, config: Any) -> str:
    """Key of the evaluation of a model stage."""
    methods = {entry.path for entry in registry.entries()}
    files = [path for path in _files("lm") if path not in methods]
    return digest([stage_key, tokens_key, to_dict(config), _digest_files(files)])
