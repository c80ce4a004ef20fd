"""The texts of one file: plain text is one, a table holds one in each row, or a conversation.

Told by the file's ending, which may be followed by that of a compression (`notes.jsonl.gz`).
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from itertools import chain
from pathlib import Path
from typing import IO, Any

from mixwell.core.errors import MixwellError
from mixwell.lm import conversation as talk
from mixwell.lm import encodings
from mixwell.lm.conversation import Conversation

TEXT_FIELDS = ("text", "content", "document", "body")  # looked for in this order where no field is named
PROMPT, COMPLETION = "prompt", "completion"  # of a row that asks and answers in two fields
HEAD_BYTES = 1 << 16  # looked at before a file is read whole
BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)

TOOLS = "tools"  # the field beside a conversation that holds what may be called in it
Texts = Iterator[tuple[int, str | Conversation]]  # (row from 1, what it holds); row 0: the file is one text


@dataclass
class Wanted:
    """Which field holds the text."""

    field: str | None = None  # None: look for it
    guessed: list[str] = dataclass_field(default_factory=list)  # fields taken since no other held text


class NoText(MixwellError):
    """A file without text that can be read; `reason` says why in a few words."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def texts(path: Path, wanted: Wanted) -> Texts:
    """The texts of a file. `NoText` comes before the first one, `MixwellError` at a row that is broken."""
    inner = path.with_suffix("") if path.suffix in OPENERS else path
    read = FORMATS.get(inner.suffix.lower(), _plain)
    try:
        yield from read(path, wanted)
    except UnicodeDecodeError as error:
        raise _not_utf_8(path, error, read is _plain) from error
    except BROKEN as error:
        raise MixwellError(f"{path} is cut short or broken ({error}); copy it again.") from error


def _plain(path: Path, wanted: Wanted) -> Texts:
    yield 0, _read(path)


def _read(path: Path) -> str:
    with _opened(path) as file:
        start = file.read(HEAD_BYTES)
        encoding = _encoding(path, start)
        rest = file.read()
    if encoding == encodings.UTF_8 and b"\0" in rest:
        raise _binary(path)
    return (start + rest).decode(encoding)


def _json_lines(path: Path, wanted: Wanted) -> Texts:
    with _lines(path) as file:
        yield from _objects(path, _parsed(path, file), wanted)


def _parsed(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MixwellError(f"{path}, line {number}: not JSON ({error}); expected an object a line.") from error


def _json(path: Path, wanted: Wanted) -> Texts:
    """A list of objects or texts, one conversation, or JSON lines; any other JSON is text like that of a program."""
    text = _read(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = "Extra data" in str(error)
        yield from _json_lines(path, wanted) if lines else [(0, text)]
        return
    if isinstance(value, dict) and any(isinstance(value.get(name), list) for name in talk.FIELDS):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(row, (dict, str)) for row in value):
        yield from _objects(path, enumerate(value, start=1), wanted)
    else:
        yield 0, text


def _objects(path: Path, rows: Iterable[tuple[int, Any]], wanted: Wanted) -> Texts:
    """The texts of numbered JSON values: objects, whose first one decides the field, or bare texts."""
    name = ""
    for number, row in rows:
        if isinstance(row, str):
            yield number, _whole(row)
        elif isinstance(row, dict):
            name = name or _field(path, list(row), _texts_among(row), wanted)
            yield number, _held(path, number, name, row)
        else:
            raise NoText(f"{path}, row {number}: {type(row).__name__}; expected objects such as {{\"text\": ...}}.",
                         "no text field")


def _csv(path: Path, wanted: Wanted) -> Texts:
    csv.field_size_limit(sys.maxsize)  # a document is longer than the 128 KiB that csv lets through
    with _lines(path) as file:
        header = file.readline()
        delimiters = "\t,;|" if ".tsv" in path.suffixes else ",\t;|"  # of equally frequent ones the first is taken
        delimiter = max(delimiters, key=header.count)
        columns = next(csv.reader([header], delimiter=delimiter), [])
        rows = csv.reader(file, delimiter=delimiter)
        first = next(rows, [])
        name = _field(path, columns, _worded(columns, first), wanted)
        for number, row in enumerate(chain([first], rows), start=1):
            if len(row) > len(columns):
                raise MixwellError(f"{path}, row {number}: {len(row)} cells under {len(columns)} columns; put quotes "
                                   f"around text that holds {delimiter!r}.")
            if row:
                cells = [*zip(columns, row)]
                yield number, _held(path, number, name, dict(reversed(cells)))  # of a name that comes twice the first


def _worded(columns: Sequence[str], first: Sequence[str]) -> list[str]:
    """The columns whose first cell is no number: in these files everything is text, identifiers and counts as well."""
    numeric = {name for name, cell in zip(columns, first) if _is_number(cell)}
    return [name for name in columns if name not in numeric]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parquet(path: Path, wanted: Wanted) -> Texts:
    arrow = _pyarrow(path)
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except arrow.ArrowInvalid as error:
        raise NoText(f"{path} is not a Parquet file ({error}).", "broken Parquet") from error
    with file:
        name, columns = _columns(path, file.schema_arrow, wanted)
        yield from _batches(path, name, file.iter_batches(columns=columns))


def _arrow(path: Path, wanted: Wanted) -> Texts:
    arrow = _pyarrow(path)
    with arrow.memory_map(str(path)) as file:
        try:
            opened = arrow.ipc.open_stream(file)
        except arrow.ArrowInvalid:
            file.seek(0)
            opened = _arrow_file(path, arrow, file)
        name, columns = _columns(path, opened.schema, wanted)
        batches = opened if hasattr(opened, "__iter__") else map(opened.get_batch, range(opened.num_record_batches))
        yield from _batches(path, name, (batch.select(columns) for batch in batches))


def _arrow_file(path: Path, arrow: Any, file: Any) -> Any:
    try:
        return arrow.ipc.open_file(file)
    except arrow.ArrowInvalid as error:
        raise NoText(f"{path} is not an Arrow file ({error}).", "broken Arrow") from error


def _columns(path: Path, schema: Any, wanted: Wanted) -> tuple[str, list[str]]:
    """The column that holds the text, and all that are read for it."""
    kinds = {column.name: str(column.type) for column in schema}
    texts = [name for name, kind in kinds.items() if kind.endswith(("string", "string_view"))]
    name = _field(path, schema.names, texts, wanted)
    wanted_too = [TOOLS, PROMPT] if name == COMPLETION else [TOOLS]
    beside = [other for other in wanted_too if other in kinds and name != other]
    return name, [name, *beside]


def _batches(path: Path, name: str, batches: Iterator[Any]) -> Texts:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, _held(path, number, name, row)


def _turns(said: Any, role: str) -> list[Any]:
    """What one side says: a text, or messages as they are."""
    if isinstance(said, list):
        return list(said)
    return [{"role": role, "content": said}]


def _whole(text: str) -> str:
    r"""The text without halves of surrogate pairs, which JSON can spell (`"\ud800"`) and UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _held(path: Path, number: int, field: str, row: Mapping[str, Any]) -> str | Conversation:
    """What the field of a row holds: a text, or messages."""
    value = row.get(field)
    if value is None:
        return ""
    if field == COMPLETION and row.get(PROMPT) is not None:
        value = [*_turns(row[PROMPT], "user"), *_turns(value, talk.ANSWERING)]
    if isinstance(value, str):
        return _whole(value)
    if not isinstance(value, list):
        raise NoText(f"{path}: {field!r} holds {type(value).__name__}; expected text, or a list of messages. Name the "
                     "field that holds it: data.text_field.", "no text field")
    try:
        found = talk.conversation(value, row.get(TOOLS))
        return Conversation.from_json(_whole(found.to_json()))
    except (ValueError, RecursionError) as error:
        raise MixwellError(f"{path}, row {number}, {field}: {error}") from error


def _texts_among(row: Mapping[str, Any]) -> list[str]:
    cells = row.items()
    return [name for name, value in cells if isinstance(value, str)]


def _field(path: Path, names: Sequence[str], texts: Sequence[str], wanted: Wanted) -> str:
    """The field that holds the text: the one named, a usual one however it is capitalised, or the only text there is.

    texts: those of the names whose fields hold text.
    """
    if wanted.field is not None:
        looked_for: Sequence[str] = (wanted.field,)
        found = [wanted.field] if wanted.field in names else []
    else:
        looked_for = (*TEXT_FIELDS, *talk.FIELDS, f"{PROMPT} beside {COMPLETION}")
        found = _usual(names) or _only(texts, wanted)
    if found:
        return found[0]
    known = ", ".join(names) or "none"
    usual = " or ".join(map(repr, looked_for))
    raise NoText(f"{path} has no field {usual} (its fields: {known}); name the one that holds the text: "
                 "data.text_field.", "no text field")


def _usual(names: Sequence[str]) -> list[str]:
    """The names that a field with messages or text goes by, the likeliest first."""
    lower = {name.lower(): name for name in reversed(names)}
    usual = (*talk.FIELDS, *TEXT_FIELDS)
    there = [lower[name] for name in usual if name in lower]
    if PROMPT in names and COMPLETION in names:
        there.append(COMPLETION)
    return there


def _only(texts: Sequence[str], wanted: Wanted) -> list[str]:
    """The field with text where there is one alone, which is then told."""
    if len(texts) != 1:
        return []
    wanted.guessed += [name for name in texts if name not in wanted.guessed]
    return list(texts)


def _opened(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed."""
    if path.suffix not in OPENERS:
        return open(path, "rb")
    opener = OPENERS[path.suffix]
    return opener(path)


def _lines(path: Path) -> io.TextIOWrapper:
    """The file's text by lines; line ends inside a CSV field stay."""
    with _opened(path) as file:
        encoding = _encoding(path, file.read(HEAD_BYTES))
    return io.TextIOWrapper(_opened(path), encoding=encoding, newline="")


def _encoding(path: Path, start: bytes) -> str:
    """The encoding that the first bytes tell of: UTF-16 or UTF-32 by their mark, else UTF-8."""
    marked = encodings.marked(start)
    if marked or b"\0" not in start:
        return marked or encodings.UTF_8
    unmarked = encodings.unmarked_utf_16(start)
    if unmarked:
        raise NoText(f"{path} looks like {unmarked} without its mark; convert it (iconv -f {unmarked} -t UTF-8) or "
                     "leave it out.", "not UTF-8")
    raise _binary(path)


def _not_utf_8(path: Path, error: UnicodeDecodeError, whole: bool) -> NoText:
    """What is said of a file in another encoding; a place is told where it was decoded as a whole."""
    where = f"byte {error.start}: " if whole else ""
    with _opened(path) as file:
        found = encodings.candidates(file.read(HEAD_BYTES))
    return NoText(f"{path} is not UTF-8 ({where}{error.reason}) and may be {' or '.join(found)}; convert it (iconv -f "
                  f"{found[0]} -t UTF-8) or leave it out.", "not UTF-8")


def _binary(path: Path) -> NoText:
    return NoText(f"{path} is a binary file; expected UTF-8 text. Leave it out, with a glob such as "
                  f"{path.parent / '*.txt'}.", "binary")


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise MixwellError(f"{path} needs pyarrow, which is not installed: pip install 'mixwell[tables]'.") from error
    return pyarrow


def _zstandard(path: Path) -> Any:
    return _pyarrow(path).input_stream(str(path), compression="zstd")


OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstandard}
FORMATS: dict[str, Callable[[Path, Wanted], Texts]] = {
    ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet,
    ".arrow": _arrow}
