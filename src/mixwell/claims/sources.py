"""Which source a claim's numbers come from, as a digest: evidence made by another source is stale.

Counted are the claim's file, its method's file, and every definition that these use from the claims' helpers and from
the method's room, each without docstrings and comments. What lies below (products, training, files) is held to its
numbers by its own tests and does not count, or no evidence would outlive a day.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from mixwell.claims import method_of
from mixwell.core import registry
from mixwell.core.files import digest

DECLARATIONS = "mixwell.claims.claim"  # how claims are written down decides no number
Place = tuple[str, str]  # (module, name of a definition; empty for all of the module)


def source(claim: str) -> str:
    """The digest for the claim of this name."""
    method = method_of(claim)
    room = method.partition(".")[0]
    within = ("mixwell.claims.", f"mixwell.{room}.")
    starts = [(f"mixwell.claims.{claim}", ""), (f"mixwell.{method}", "")]
    found = _reached(starts, within)
    return digest(sorted(found.items()))[:16]


def _reached(starts: list[Place], within: tuple[str, ...]) -> dict[str, str]:
    """Every definition that the starts use, directly or not: where it stands -> what it says."""
    found: dict[str, str] = {}
    ahead = list(starts)
    while ahead:
        module, name = ahead.pop()
        key = f"{module}:{name}"
        path = _file(module)
        if key in found or path is None or module == DECLARATIONS:
            continue
        found[key], used = _said(path, name)
        own = _definitions(path)
        ahead += [(module, each) for each in used & own.keys() if name]
        ahead += [place for alias, place in _imports(path, within) if alias in used]
    return found


def _file(module: str) -> Path | None:
    parts = module.split(".")[1:]
    path = registry.ROOT.joinpath(*parts)
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((each for each in candidates if each.exists()), None)


@functools.cache
def _body(path: Path) -> tuple[ast.stmt, ...]:
    """The statements of a file, whose functions and classes have no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tuple(tree.body)


@functools.cache
def _said(path: Path, name: str) -> tuple[str, frozenset[str]]:
    """What a definition of a file says, or all of the file, with no traces of where it stands; the names it uses."""
    nodes = _definitions(path).get(name, []) if name else _body(path)
    text = "\n".join(map(_bare, nodes))
    used: set[str] = set()
    for node in nodes:
        names = (part for part in ast.walk(node) if isinstance(part, ast.Name))
        used.update(name.id for name in names)
    return text, frozenset(used)


@functools.cache
def _definitions(path: Path) -> dict[str, list[ast.stmt]]:
    """Name -> the statements at the top of a file that define it."""
    found: dict[str, list[ast.stmt]] = {}
    for node in _body(path):
        for name in _defined(node):
            found.setdefault(name, []).append(node)
    return found


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


@functools.cache
def _imports(path: Path, within: tuple[str, ...]) -> tuple[tuple[str, Place], ...]:
    """(the name it has here, where it is defined) of what a file imports from the modules that count."""
    found = []
    for statement in _body(path):
        for node in ast.walk(statement):
            if isinstance(node, ast.ImportFrom) and node.module and f"{node.module}.".startswith(within):
                found += [(alias.asname or alias.name, _place(node.module, alias.name)) for alias in node.names]
    return tuple(found)


def _place(module: str, name: str) -> Place:
    inner = f"{module}.{name}"
    return (module, name) if _file(inner) is None else (inner, "")


def _bare(node: ast.stmt) -> str:
    """A statement's text; none of a lone constant, which a module's docstring is."""
    alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return "" if alone else ast.unparse(node)
