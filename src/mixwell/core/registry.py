"""Methods, found by reading their headers: a file is listed without being imported, and imported alone when used."""

from __future__ import annotations

import ast
import functools
import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mixwell.core.errors import MixwellError, shown, suggest
from mixwell.rooms import holding_methods

ROOT = Path(__file__).parents[1]
_HEADER = re.compile(r"^@method\(.*?^(?:class|def) \w+", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue, read from a file's header."""

    name: str  # experts.routers.top_k
    object_name: str  # TopK
    title: str
    papers: tuple[str, ...]
    year: int
    tags: frozenset[str]
    path: Path

    @property
    def room(self) -> str:
        """The first part of the name."""
        return self.name.split(".")[0]

    @property
    def family(self) -> str:
        """The name without its last part."""
        return self.name.rpartition(".")[0]

    def module(self) -> ModuleType:
        """Import the method's module (and nothing else of the catalogue)."""
        return importlib.import_module(f"mixwell.{self.name}")

    def load(self) -> Any:
        """Import the method's module and return its marked object."""
        return getattr(self.module(), self.object_name)

    def card_text(self) -> str:
        """The docstring card, read without importing."""
        tree = ast.parse(self.path.read_text(encoding="utf-8"))
        return ast.get_docstring(tree) or ""


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Every method of the catalogue, sorted by name."""
    rooms = sorted(holding_methods())
    return tuple(entry for room in rooms for entry in _of_room(room))


@functools.cache
def _of_room(room: str) -> tuple[Entry, ...]:
    """Every method of one room: to read the others for it would take longer than some commands."""
    found = []
    for path in sorted((ROOT / room).rglob("[!_]*.py")):
        place = path.relative_to(ROOT).with_suffix("")
        found.append(_at(".".join(place.parts)))
    return tuple(filter(None, found))


@functools.cache
def _at(name: str) -> Entry | None:
    """The method of that full name, which is where its file lies."""
    room, *rest = name.split(".")
    plain = room in holding_methods() and all(map(str.isidentifier, rest))
    path = ROOT.joinpath(room, *rest).with_suffix(".py")
    return _read(path, name) if plain and os.path.isfile(path) else None  # Path's own raises for a name too long


def _read(path: Path, name: str) -> Entry | None:
    """The method that a file holds, from its text; None where nothing in it is marked."""
    source = path.read_text(encoding="utf-8")
    if "@method(" not in source:
        return None  # parsing costs more than looking
    header = _HEADER.search(source)  # and parsing all of a file more than parsing this part of it
    try:
        tree = ast.parse(f"{header[0]}(): ..." if header else source)
    except SyntaxError as error:
        line = source.count("\n", 0, header.start() if header else 0) + (error.lineno or 1)
        raise MixwellError(f"{path}, line {line}: {error.msg}; @method must stand directly above a class or a "
                           "function.") from error
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and (mark := _mark(node)) is not None:
            return _entry(path, name, node.name, mark)
    return None


def _mark(node: ast.ClassDef | ast.FunctionDef) -> ast.Call | None:
    """The `@method(...)` above a definition, where one stands."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "method":
            return decorator
    return None


def _entry(path: Path, name: str, object_name: str, mark: ast.Call) -> Entry:
    try:
        values = {k.arg: ast.literal_eval(k.value) for k in mark.keywords}
        title, year = values["title"], values["year"]
    except (ValueError, KeyError) as error:
        raise MixwellError(f"{path}: @method needs literal title, paper, year and tags ({error}).") from error
    papers = values.get("paper", ())
    listed = (papers,) if isinstance(papers, str) else tuple(papers)
    tags = frozenset(values.get("tags", ()))
    return Entry(name, object_name, title, listed, year, tags, path)


def family(prefix: str) -> tuple[Entry, ...]:
    """The methods whose name starts with `prefix` (a room or a family)."""
    start = prefix.rstrip(".") + "."
    room = start.partition(".")[0]
    known = _of_room(room) if room in holding_methods() else ()
    return tuple(entry for entry in known if entry.name.startswith(start))


@functools.cache  # models of many layers ask for the same again and again
def find(name: str, within: str = "") -> Entry:
    """Look a method up by its full name, or by a short one inside the family `within`.

    An unknown name raises `MixwellError` with the nearest one.
    """
    for candidate in (f"{within}.{name}" if within else name, name):
        if (entry := _at(candidate)) is not None:
            return entry
    options = [entry.name for entry in entries()]
    if within:
        options = [entry.name.removeprefix(within + ".") for entry in family(within)]
    last = [option.rpartition(".")[2] for option in options]
    hint = suggest(name, options) or suggest(name, last)
    kind = f"{within} method" if within else "method"
    listing = f"mixwell list {within}".rstrip()
    raise MixwellError(f"unknown {kind} {shown(name)}.{hint} See `{listing}`.")


def room_names(room: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for a room's `__init__`: its methods' objects, found from headers, loaded on use."""
    prefix = room.removeprefix("mixwell.")

    def load(name: str) -> Any:
        if name.startswith("__"):  # the import system asks for dunders; no scan for those
            raise AttributeError(name)
        found = [e for e in family(prefix) if e.object_name == name]
        if len(found) == 1:
            return found[0].load()
        if found:
            raise AttributeError(f"{name} is offered by {' and '.join(e.name for e in found)}; import it from there")
        names = [e.object_name for e in family(prefix)]
        raise AttributeError(f"module {room!r} has no attribute {name!r}.{suggest(name, names)}")

    return load, lambda: sorted({e.object_name for e in family(prefix)})
