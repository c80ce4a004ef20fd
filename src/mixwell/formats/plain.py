"""JSON of a known shape: read strictly, then checked key by key before anything is done with it.

A `Kind` says what a value must be; a schema is a mapping from keys to kinds. What does not fit ends in one line that
names the file, the key, what came and what was expected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mixwell.core.errors import MixwellError, shown
from mixwell.core.files import read_bytes

DEEPEST = 64  # levels of JSON inside each other
Parts = Iterable[tuple[str, Any, "Kind"]]  # (where it stands, value, what it must be)
Schema = Mapping[str, "Kind"]


def read_object(path: str | Path, schema: Schema, required: Collection[str] = ()) -> dict[str, Any]:
    """The keys and values of a JSON file, those of `schema` checked; other keys are left as they are."""
    content = parse(read_bytes(path), str(path))
    return check_object(content, schema, str(path), required)


def check_object(content: Any, schema: Schema, where: str, required: Collection[str] = ()) -> dict[str, Any]:
    """`content` where it holds keys and values that fit; else `MixwellError`."""
    if not isinstance(content, dict):
        raise MixwellError(f"{where} holds no keys and values; it holds {shown(content)}.")
    for key in required:
        if key not in content:
            raise MixwellError(f"{where} has no {key}; expected {schema[key].words}.")
    for key, kind in schema.items():
        if key in content:
            check(content[key], kind, f"{where}: {key}")
    return content


def parse(data: bytes, where: str) -> Any:
    """The plain value that JSON says.

    What readers understand differently raises `MixwellError`: a key that stands twice, NaN, a number beyond floats; and
    so does nesting beyond `DEEPEST`.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
        _check_depth(data, value)
    except RecursionError as error:
        raise MixwellError(f"{where} is not readable as JSON (nested deeper than {DEEPEST}).") from error
    except ValueError as error:
        raise MixwellError(f"{where} is not readable as JSON ({error}); restore it or remove it.") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it names {shown(twice)} twice")
    return found


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number that JSON knows")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{shown(text)} is beyond the numbers that a float holds")
    return value


def _check_depth(data: bytes, value: Any) -> None:
    """Whoever walks through the value may do so by recursion."""
    if data.count(b"[") + data.count(b"{") <= DEEPEST:
        return
    level = [value]
    for _ in range(DEEPEST):
        level = [item for outer in level for item in _items(outer)]
        if not level:
            return
    raise RecursionError


def _items(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _no_parts(value: Any, where: str) -> Parts:
    return ()


@dataclass(frozen=True)
class Kind:
    """What a value must be: in words, as a test of itself, and the same of its parts."""

    words: str
    fits: Callable[[Any], bool]
    parts: Callable[[Any, str], Parts] = _no_parts


def check(value: Any, kind: Kind, where: str) -> None:
    """Raise `MixwellError` where a value, or a part of it, is not of its kind."""
    if not kind.fits(value):
        raise MixwellError(f"{where} is {shown(value)}; expected {kind.words}.")
    for place, part, expected in kind.parts(value, where):
        check(part, expected, place)


ANYTHING = Kind("anything", lambda value: True)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))


def whole(low: int, high: int) -> Kind:
    """A whole number in a range, both ends inside."""
    def fits(value: Any) -> bool:
        return _is_whole(value) and low <= value <= high

    return Kind(f"a whole number from {low} to {high}", fits)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def number(low: float = -math.inf, high: float = math.inf) -> Kind:
    """A finite number in a range, both ends inside."""
    words = "a number"
    if low > -math.inf:
        words += f" at least {low:g}"
    if high < math.inf:
        words += f" and at most {high:g}"

    def fits(value: Any) -> bool:
        if not (_is_whole(value) or isinstance(value, float)):
            return False
        inside = low <= value <= high
        return inside and abs(value) < _BEYOND_FLOATS

    return Kind(words, fits)


_BEYOND_FLOATS = 2**1023


def text(most: int = 2**20) -> Kind:
    """Text of at most so many characters."""
    def fits(value: Any) -> bool:
        return isinstance(value, str) and len(value) <= most

    return Kind("text", fits)


def mapping(each: Kind = ANYTHING) -> Kind:
    """Keys and values, the values all of one kind."""
    def parts(value: dict[str, Any], where: str) -> Parts:
        if each is ANYTHING:
            return
        for key, item in value.items():
            place = f"{where}, {shown(key)}"
            yield place, item, each

    words = "keys and values" if each is ANYTHING else f"keys and values, each {each.words}"
    return Kind(words, lambda value: isinstance(value, dict), parts)


def keyed(schema: Schema, required: Collection[str] = ()) -> Kind:
    """Keys and values, those of `schema` of their own kinds, with the `required` ones among them."""
    def fits(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        return all(key in value for key in required)

    def parts(value: dict[str, Any], where: str) -> Parts:
        for key in schema:
            place = f"{where}.{key}"
            if key in value:
                yield place, value[key], schema[key]

    words = f"keys and values with {' and '.join(required)}" if required else "keys and values"
    return Kind(words, fits, parts)


def sequence(each: Kind = ANYTHING) -> Kind:
    """A list, the items all of one kind."""
    def parts(value: list[Any], where: str) -> Parts:
        if each is ANYTHING:
            return
        for place, item in enumerate(value):
            yield f"{where}[{place}]", item, each

    words = "a list" if each is ANYTHING else f"a list, each {each.words}"
    return Kind(words, lambda value: isinstance(value, list), parts)


def either(*kinds: Kind) -> Kind:
    """One of several kinds."""
    def parts(value: Any, where: str) -> Parts:
        chosen = next(kind for kind in kinds if kind.fits(value))
        return chosen.parts(value, where)

    words = " or ".join(kind.words for kind in kinds)
    return Kind(words, lambda value: any(kind.fits(value) for kind in kinds), parts)


def optional(kind: Kind) -> Kind:
    """A kind, or null."""
    return either(kind, Kind("null", lambda value: value is None))
