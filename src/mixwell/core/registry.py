"""Methods, found by reading their headers: a file is listed without being imported, and imported alone when used."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mixwell.core.errors import MixwellError, suggest
from mixwell.rooms import holding_methods

ROOT = Path(__file__).parents[1]


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
        return ast.get_docstring(ast.parse(self.path.read_text(encoding="utf-8"))) or ""


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Every method of the catalogue, sorted by name."""
    found = []
    rooms = holding_methods()
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        if relative.parts[0] not in rooms or path.name.startswith("_"):
            continue
        entry = _read(path, ".".join(relative.with_suffix("").parts))
        if entry is not None:
            found.append(entry)
    return tuple(found)


def _read(path: Path, name: str) -> Entry | None:
    source = path.read_text(encoding="utf-8")
    start = source.find("\n@method(")
    if start < 0:
        return None
    match = re.search(r"^(?:class|def)\s+(\w+)", source[start:], re.MULTILINE)
    if match is None:
        raise MixwellError(f"{path}: @method must stand directly above a class or a function.")
    header = source[start + 1 : start + match.start()].split("\n@")[0]
    try:
        call = ast.parse(header.strip()[1:], mode="eval").body
        assert isinstance(call, ast.Call)
        values = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
        papers = values.get("paper", ())
        return Entry(name, match.group(1), values["title"], (papers,) if isinstance(papers, str) else tuple(papers),
                     values["year"], frozenset(values.get("tags", ())), path)
    except (SyntaxError, ValueError, KeyError, AssertionError) as error:
        raise MixwellError(f"{path}: @method needs literal title, paper, year and tags ({error}).") from error


def family(prefix: str) -> tuple[Entry, ...]:
    """The methods whose name starts with `prefix` (a room or a family)."""
    return tuple(e for e in entries() if e.name.startswith(prefix.rstrip(".") + "."))


def find(name: str, within: str = "") -> Entry:
    """Look a method up by its full name, or by a short one inside the family `within`.

    An unknown name raises `MixwellError` with the nearest one.
    """
    known = {e.name: e for e in entries()}
    for candidate in (f"{within}.{name}" if within else name, name):
        if candidate in known:
            return known[candidate]
    options = [e.name.removeprefix(within + ".") for e in family(within)] if within else list(known)
    hint = suggest(name, options) or suggest(name, [o.rpartition(".")[2] for o in options])
    kind = f"{within} method" if within else "method"
    raise MixwellError(f"unknown {kind} {name!r}.{hint} See `mixwell list {within}`.".replace(" `.", "`."))


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
