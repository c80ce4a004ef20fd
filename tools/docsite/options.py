"""A method's options: the fields of its `Config`, inherited ones too, or the parameters of an estimator."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Option:
    """One option as its source writes it."""

    name: str
    kind: str  # the annotation
    default: str  # empty where a value must be given
    meaning: str  # the comment beside it


def of(module: ModuleType, target: Any) -> list[Option]:
    """Options of a method; none where it has none.

    A family of estimators may share one config, which the estimator's class then names.
    """
    config = getattr(module, "Config", None) or getattr(target, "_config_class", None)
    if config is not None:
        return [option for field in dataclasses.fields(config) if field.init
                if (option := _written(config, field.name)) is not None]
    return [] if not inspect.isclass(target) else _parameters(target)


def _written(config: type, name: str) -> Option | None:
    """A field as the class that declares it writes it."""
    for cls in config.__mro__:
        if name in vars(cls).get("__annotations__", {}):
            return _fields(cls).get(name)
    return None


@functools.cache
def _fields(cls: type) -> dict[str, Option]:
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    return {node.target.id: _option(node, lines) for node in body.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}


def _option(node: ast.AnnAssign, lines: list[str]) -> Option:
    assert isinstance(node.target, ast.Name) and node.end_lineno is not None
    default = _default(node.value)
    beside = lines[node.end_lineno - 1][node.end_col_offset :] if node.end_col_offset else ""
    comment = beside.partition("#")[2].strip() or _above(lines, node.lineno - 1)
    return Option(node.target.id, ast.unparse(node.annotation), default, comment)


def _above(lines: list[str], index: int) -> str:
    """Comment lines that stand directly above a field."""
    found: list[str] = []
    while index > 0 and lines[index - 1].strip().startswith("#"):
        index -= 1
        found.insert(0, lines[index].strip().lstrip("# "))
    return " ".join(found)


def _default(value: ast.expr | None) -> str:
    """The default as written; that of a `field(default_factory=...)` by what it makes."""
    if value is None:
        return ""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        made = {keyword.arg: keyword.value for keyword in value.keywords}
        factory = made.get("default_factory")
        if isinstance(factory, ast.Lambda):
            return ast.unparse(factory.body)
        plain = made.get("default")
        return ast.unparse(plain) if plain is not None else f"{ast.unparse(factory)}()" if factory else ""
    return ast.unparse(value)


def _parameters(target: type) -> list[Option]:
    """An estimator's constructor; what the parameters mean stands in its docstring, as scikit-learn has it."""
    signature = inspect.signature(target)
    return [Option(p.name, _annotation(p), "" if p.default is p.empty else repr(p.default), "")
            for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _annotation(parameter: inspect.Parameter) -> str:
    if parameter.annotation is parameter.empty:
        return ""
    annotation = parameter.annotation
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
