"""YAML as plain data: text, numbers, true and false, nothing, lists, and mappings with text for keys.

A few hundred bytes of YAML can stand for more than any memory holds, since an alias repeats what it names. The size of
what comes out is therefore bounded before any of it is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mixwell.core.errors import MixwellError
from mixwell.core.units import whole

MOST_BYTES = 500_000  # of a file
MOST_VALUES = 20_000  # keys and values, those counted that aliases repeat
DEEPEST = 40  # levels of lists and mappings
SHOWN = 40  # characters of a value that an error repeats
TAG = "tag:yaml.org,2002:"
MERGE = TAG + "merge"
TEXTS = (TAG + "str", TAG + "timestamp")
PLAIN = {TAG + name for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge", "timestamp")}


def read(path: Path) -> Any:
    """What a YAML file holds. A file that cannot be read, or is no YAML of plain data, raises `MixwellError`."""
    try:
        if path.exists() and not path.is_file():
            raise MixwellError(f"{path} is no regular file; expected YAML.")
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MixwellError(f"{path} is not text; expected YAML.") from None
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise MixwellError(f"{path} cannot be read ({error}).") from error
    if len(data) > MOST_BYTES:
        raise MixwellError(f"{path} is larger than {whole(MOST_BYTES)} bytes; expected YAML of a few lines.")
    return parse(text, str(path))


def parse(text: str, where: str) -> Any:
    """What YAML text means; nothing in it is shared between two places. `where` begins what errors say."""
    try:
        return _unshared(_Loader(text).get_single_data())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise MixwellError(f"{where}{line}: {error.problem}; expected YAML keys and values.") from None
    except yaml.YAMLError as error:
        words = " ".join(str(error).split())
        raise MixwellError(f"{where} is not YAML ({words}).") from None


def _unshared(value: Any) -> Any:
    """A copy in which every alias has become a value of its own: to change one is to change one."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item) for item in value]
    return value


class _Loader(yaml.SafeLoader):
    """Bounded in depth and size; a key that stands twice is an error and not a silent loss."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.values = 0

    def compose_document(self) -> yaml.Node:
        root = super().compose_document()
        _check_size(root, {})
        return root

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        self.depth += 1
        self.values += 1
        mark = self.peek_event().start_mark
        if self.depth > DEEPEST:
            raise _problem(f"more than {DEEPEST} levels of lists and mappings", mark)
        if self.values > MOST_VALUES:
            raise _too_many(mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node.tag not in PLAIN:
            raise _problem(f"the tag {_short(node.tag)} has no place in plain data", mark)
        return node

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = self._key(key)
            if name in seen:
                raise _problem(f"the key {_short(name)} stands twice", node.start_mark)
            seen.add(name)
        return node

    def _key(self, key: yaml.Node) -> str:
        """What a key says; anything but text raises."""
        if key.tag == MERGE:
            return "<<"
        scalar = isinstance(key, yaml.ScalarNode)
        if scalar and key.tag in TEXTS:
            return key.value
        came = _short(key.value) if scalar else "a list or a mapping"
        raise _problem(f"the key {came} is no text (put quotes around it)", key.start_mark)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:  # a number of thousands of digits
            raise _problem(f"{_short(node.value)} cannot be read ({error})", node.start_mark) from error


_Loader.add_constructor(TAG + "timestamp", yaml.SafeLoader.construct_yaml_str)


def _check_size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many keys and values a node stands for, those that aliases repeat as often as they do.

    known: node -> that number, 0 while it is being found. One that holds itself, and too many, raise.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise _problem("an alias names what it stands in", node.start_mark)
        return known[id(node)]
    known[id(node)] = 0
    size = 1
    for part in _parts(node):
        size += _check_size(part, known)
        if size > MOST_VALUES:
            raise _too_many(node.start_mark)
    known[id(node)] = size
    return size


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _too_many(mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return _problem(f"more than {whole(MOST_VALUES)} keys and values, counted with what aliases repeat", mark)


def _problem(words: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=words, problem_mark=mark)


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}...")
