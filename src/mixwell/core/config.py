"""Configs: frozen keyword-only dataclasses, to and from plain YAML data.

A config checks its own ranges in `__post_init__` with `ValueError`; `from_dict` checks names and types and says
where in the recipe the trouble is.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from mixwell.core.errors import MixwellError, shown, suggest

C = TypeVar("C")


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def from_dict(cls: type[C], data: Mapping[str, Any] | None, where: str = "") -> C:
    """Build the config `cls` from plain data.

    `where` is the path shown in errors (`train.router`). An unknown key, a wrong type, a missing field or a value
    out of range raises `MixwellError` in one line.
    """
    label = where or cls.__name__
    data = {} if data is None else data
    if not isinstance(data, Mapping):
        raise MixwellError(f"{label}: expected keys and values, got {shown(data)}.")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            options = ", ".join(fields) or "none"
            raise MixwellError(f"{label}: unknown key {shown(key)}.{suggest(str(key), fields)} Known keys: {options}.")
    missing = [n for n, f in fields.items()
               if n not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing:
        raise MixwellError(f"{label}: missing {', '.join(missing)}; give a value.")
    hints: Mapping[str, Any] = _hints(cls)  # type: ignore[arg-type]  # a class is hashable, whatever its type variable
    values = {key: _convert(value, hints[key], f"{where}.{key}" if where else key) for key, value in data.items()}
    try:
        return cls(**values)
    except MixwellError:
        raise
    except ValueError as error:
        raise MixwellError(f"{label}: {error}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """Plain data (dicts, lists, numbers, strings) that `from_dict` turns back into an equal config."""
    names = [f.name for f in dataclasses.fields(config) if f.init]
    return {name: _plain(getattr(config, name)) for name in names}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Turn plain data into what the annotation `hint` asks for, or raise."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, args, where)
    if origin is typing.Literal:
        if value not in args:
            known = ", ".join(map(str, args))
            raise MixwellError(f"{where}: {shown(value)} is not one of {known}.{suggest(str(value), map(str, args))}")
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin in (tuple, list, Sequence):
        return _convert_sequence(value, origin, args, where)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(value, "keys and values", where)
        return {k: _convert(v, args[1], f"{where}.{k}") for k, v in value.items()}
    return _convert_scalar(value, hint, where)


def _convert_union(value: Any, args: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in args:
        return None
    errors = []
    for option in args:
        if option is type(None):
            continue
        try:
            return _convert(value, option, where)
        except MixwellError as error:
            errors.append(error)
    raise errors[-1] if errors else _wrong(value, "null", where)


def _convert_sequence(value: Any, origin: Any, args: tuple[Any, ...], where: str) -> Any:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise _wrong(value, "a list", where)
    fixed = origin is tuple and bool(args) and args[-1] is not Ellipsis
    if fixed and len(args) != len(value):
        raise _wrong(value, f"{len(args)} values", where)
    each = args[0] if args else Any
    hints = args if fixed else [each] * len(value)
    items = []
    for i, (item, hint) in enumerate(zip(value, hints)):
        items.append(_convert(item, hint, f"{where}[{i}]"))
    return tuple(items) if origin is tuple else items


def _convert_scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return _float(value, where)  # text as well: YAML 1.1 reads 3e-4 as text
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "keys and values"}
    raise _wrong(value, names.get(hint, str(hint)), where)


def _float(value: float | str, where: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise _wrong(value, "a number", where) from None
    except OverflowError:
        raise _wrong(value, "a number that a float holds", where) from None


def _wrong(value: Any, expected: str, where: str) -> MixwellError:
    came = shown(value)
    return MixwellError(f"{where}: expected {expected}, got {came}.")
