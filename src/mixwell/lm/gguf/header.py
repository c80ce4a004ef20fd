"""The head of a GGUF file: its metadata as plain data, and where each tensor lies.

Little end first: magic, version, counts; keys with typed values; names, dimensions, types and places of tensors; then,
from the next multiple of the alignment on, their bytes.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from mixwell.core.errors import MixwellError
from mixwell.formats.plain import Kind, Schema, check_object, number, text, whole

SUFFIX, MAGIC, VERSIONS = ".gguf", b"GGUF", (2, 3)
ALIGNMENT = "general.alignment", 32  # key of the alignment of tensors in bytes, and its default
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


def _list_of(kind: Kind) -> Kind:
    """A list; its first item stands for all, since a list of the file is of one type."""
    def fits(value: Any) -> bool:
        if not isinstance(value, list):
            return False
        return not value or kind.fits(value[0])

    return Kind(f"a list, each {kind.words}", fits)


_NAME, _TEXTS = text(1000), _list_of(text())
METADATA: Schema = {  # what is read of them here; those of the architecture are checked as config.json
    "general.architecture": _NAME, "general.alignment": whole(1, 2**20),
    "tokenizer.ggml.model": _NAME, "tokenizer.ggml.pre": _NAME, "tokenizer.chat_template": text(),
    "tokenizer.ggml.tokens": _TEXTS, "tokenizer.ggml.merges": _TEXTS, "tokenizer.ggml.scores": _list_of(number()),
    "tokenizer.ggml.token_type": _list_of(whole(0, 2**31 - 1))}


def is_gguf(path: str | Path) -> bool:
    """Whether `path` is a file that is called a GGUF one."""
    path = Path(path)
    return path.suffix == SUFFIX and path.is_file()


class Place(NamedTuple):
    """A tensor of the file."""

    shape: tuple[int, ...]  # rows first, as PyTorch counts
    kind: int  # GGML's number of the type
    offset: int  # bytes from the start of the file


class Header(NamedTuple):
    """What stands in front of the tensors' bytes."""

    metadata: dict[str, Any]
    tensors: dict[str, Place]


def read_header(path: Path) -> Header:
    """The head of a file; one that is cut short or no GGUF raises `MixwellError`."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(_Cursor(data), path)
    except (struct.error, ValueError, UnicodeDecodeError, OverflowError, RecursionError) as error:
        raise MixwellError(f"{path} is cut short or damaged ({error}); copy it again.") from error


class _Cursor:
    """Reads one value after another."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def number(self, form: str) -> Any:
        """One number of struct's form."""
        (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def numbers(self, form: str, count: int) -> list[Any]:
        """Several of them."""
        values = struct.unpack_from(f"<{count}{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{count}{form}")
        return list(values)

    def text(self) -> str:
        """A length and so many bytes of UTF-8."""
        length = self.number("Q")
        end = self.at + length
        if end > len(self.data):
            raise ValueError("a text runs beyond the end")
        piece = self.data[self.at : end]
        self.at = end
        return piece.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A value of GGUF's type number `kind`."""
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            return self.array()
        if kind not in _NUMBERS:
            raise ValueError(f"a value of the unknown type {kind}")
        return self.number(_NUMBERS[kind])

    def array(self) -> list[Any]:
        """A type, a count and so many values."""
        kind, count = self.number("I"), self.number("Q")
        if count > len(self.data):
            raise ValueError(f"a list of {count} values")
        if kind in _NUMBERS:
            return self.numbers(_NUMBERS[kind], count)
        return [self.value(kind) for _ in range(count)]


def _header(cursor: _Cursor, path: Path) -> Header:
    magic = cursor.data[:4]
    cursor.at = 4
    version = cursor.number("I") if magic == MAGIC else None
    if version not in VERSIONS:
        raise MixwellError(f"{path} is no GGUF file of version 2 or 3 (it begins with {magic!r}, version {version}).")
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    metadata = {}
    for _ in range(keys):
        name = cursor.text()
        metadata[name] = cursor.value(cursor.number("I"))
    check_object(metadata, METADATA, str(path))
    places = dict(_place(cursor) for _ in range(tensors))
    key, default = ALIGNMENT
    start = _aligned(cursor.at, metadata.get(key, default))
    moved = {name: place._replace(offset=place.offset + start) for name, place in places.items()}
    return Header(metadata, moved)


def _place(cursor: _Cursor) -> tuple[str, Place]:
    name = cursor.text()
    count = cursor.number("I")
    dimensions = cursor.numbers("Q", count)
    kind, offset = cursor.number("I"), cursor.number("Q")
    rows_first = tuple(reversed(dimensions))
    return name, Place(rows_first, kind, offset)


def _aligned(position: int, step: int) -> int:
    missing = -position % step
    return position + missing
