"""Tables from text, Parquet, Arrow, Excel and JSON-lines files, a folder of them, a pipe, or memory; Parquet back.

Needs the optional extra `tables`. Everything that a person may have to look up in the file is named as that person sees
it: columns by their names, rows counted from 1 without the header.
"""

from __future__ import annotations

import bisect
import csv
import io
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixwell.core.errors import MixwellError, suggest
from mixwell.core.files import write_bytes
from mixwell.tables.cells import TRUTH, Habits, Reading, interpret, is_text
from mixwell.tables.dialect import Dialect, dialect_of, rows_of
from mixwell.tables.files import (
    ARROW_ENDINGS,
    EXCEL_ENDINGS,
    JSON_ENDINGS,
    PARQUET_ENDINGS,
    STDIN,
    Source,
    encoding_of,
    is_table,
    source_of,
)
from mixwell.tables.missing import AMONG_NUMBERS, Form

if TYPE_CHECKING:
    import pandas

SNIFFED, LONGEST, LEAST_LINES = 1 << 16, 1 << 24, 20  # characters and lines of a beginning
MOST_COLUMNS = 2500  # of a file, each of which is looked at
TOTAL = re.compile(r"(grand )?total|sum|summe|gesamt|insgesamt|mean|average|mittelwert|somme|suma|media", re.I)


@dataclass(frozen=True, eq=False)
class Table:
    """A table in memory. `files` names where the rows come from: (file name, its first row here)."""

    frame: pandas.DataFrame
    name: str
    files: tuple[tuple[str, int], ...] = ()
    readings: Mapping[str, Reading] = field(default_factory=dict)  # how each column was read
    notes: tuple[str, ...] = ()  # what was found of the file

    def row(self, index: int) -> str:
        """A row as a person finds it: `row 12`, or `row 12 of b.csv` where there are several files."""
        if len(self.files) < 2:
            return f"row {index + 1}"
        firsts = [first for _, first in self.files]
        place = bisect.bisect_right(firsts, index) - 1
        file, first = self.files[place]
        return f"row {index - first + 1} of {file}"


def require() -> Any:
    """pandas; without it raises `MixwellError`, one line that says how to get it."""
    try:
        import pandas
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MixwellError(f"tables need {error.name or 'pandas'}, which is not installed: "
                           "pip install 'mixwell[tables]'.") from error
    return pandas


def read(path: str | Path, form: Form | None = None, *, written: Iterable[str] = (),
         known: Mapping[str, Reading] | None = None) -> Table:
    """Read a table file, a folder of them with the same columns, or standard input (`-`).

    form: what the caller knows of how it is written; the rest is found out. written: columns taken as words whatever
    they look like. known: how a model's columns were read, which settles what these leave open.
    What is no such table raises `MixwellError`, with the row where there is one to name.
    """
    require()
    path, form = Path(path), form or Form()
    with readable(path):
        _check_there(path)
        paths = _inside(path) if path.is_dir() else [path]
        sources = [source_of(one) for one in paths]
        parts = [_raw(source, form) for source in sources]
    raw = _joined(parts, path)
    delimiter = parts[0].delimiter
    marks = [part.bare for part in parts]
    bare = frozenset().union(*marks)
    habits = Habits(form=form, delimiter=delimiter, bare=bare, written=frozenset(written), known=known or {})
    return _interpreted(raw, habits)


def _check_there(path: Path) -> None:
    if str(path) == STDIN or path.exists():
        return
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    near = suggest(path.name, [other.name for other in beside])
    raise MixwellError(f"{path} does not exist; expected a CSV or Parquet file, or a folder of them.{near}")


def _interpreted(raw: Table, habits: Habits) -> Table:
    """A table with columns of text as numbers or words."""
    frame, readings = interpret(raw.frame, habits)
    table = Table(frame, raw.name, raw.files, readings, raw.notes)
    _refuse_total(table)
    return table


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What the system refuses to read raises `MixwellError`, one line."""
    try:
        yield
    except OSError as error:
        raise MixwellError(f"{error.filename or path} cannot be read ({error.strerror or error}); see to it that the "
                           "file is there and that you may read it.") from error


def of(source: Any, name: str = "table", form: Form | None = None, *, written: Iterable[str] = (),
       known: Mapping[str, Reading] | None = None) -> Table:
    """A table from a path, a DataFrame (pandas, Polars, Arrow), a mapping of columns, or a two-dimensional array.

    Text in it is read as in a file (`read` says what the rest means). Anything else raises `MixwellError`.
    """
    if isinstance(source, Table):
        return source
    if isinstance(source, (str, Path)):
        return read(source, form, written=written, known=known)
    pandas = require()
    if hasattr(source, "to_pandas"):
        source = source.to_pandas()
    if not isinstance(source, pandas.DataFrame):
        if not isinstance(source, Mapping) and getattr(source, "ndim", 2) != 2:
            raise MixwellError(f"a table has two dimensions, got an array of {source.ndim}.")
        try:
            source = pandas.DataFrame(source)
        except (ValueError, TypeError) as error:
            raise MixwellError(f"{type(source).__name__} is no table ({error}); expected a path, a DataFrame, a "
                               "mapping of columns or a two-dimensional array.") from error
    frame = _with_index(source)
    frame.columns = [f"column {c + 1}" if isinstance(c, int) else str(c) for c in frame.columns]
    habits = Habits(form=form or Form(), written=frozenset(written), known=known or {})
    return _interpreted(Table(_checked(frame, name), name), habits)


def _with_index(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The frame with rows counted anew; what its index has a name for becomes columns."""
    named = [level for level, name in enumerate(frame.index.names) if name is not None]
    if not named:
        return frame.reset_index(drop=True)
    names = [str(frame.index.names[level]) for level in named]
    twice = sorted(set(names) & {str(name) for name in frame.columns})
    if twice:
        raise MixwellError(f"the index and a column are both named {twice[0]!r}; rename one.")
    return frame.reset_index(level=named).reset_index(drop=True)


def write_parquet(path: str | Path, frame: pandas.DataFrame) -> Path:
    """Write a Parquet file that appears whole or not at all."""
    require()
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return write_bytes(path, buffer.getvalue())


@dataclass(frozen=True, eq=False)
class Raw:
    """A file's rows, its text as it is."""

    frame: pandas.DataFrame
    path: str
    delimiter: str = ","
    bare: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def _inside(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if is_table(path))
    if not paths:
        raise MixwellError(f"{folder} holds no .csv or .parquet file.")
    return paths


def _joined(parts: Sequence[Raw], path: Path) -> Table:
    """All files' rows one after the other."""
    pandas = require()
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    if not path.is_dir():
        name = "stdin" if str(path) == STDIN else path.name.split(".")[0]
        return Table(parts[0].frame, name, notes=notes)
    files, rows = [], 0
    for part in parts:
        _same_columns(parts[0], part)
        files.append((Path(part.path).name, rows))
        rows += len(part.frame)
    frames = [_texts_where_some_are(part.frame, parts) for part in parts]
    whole = pandas.concat(frames, ignore_index=True)
    return Table(whole, path.resolve().name, tuple(files), notes=notes)


def _texts_where_some_are(frame: pandas.DataFrame, parts: Sequence[Raw]) -> pandas.DataFrame:
    """Numbers as text in the columns that are text in another file, so that a column is read as one."""
    changed = {}
    for name in frame.columns:
        text = any(is_text(part.frame[name]) for part in parts)
        if text and frame[name].dtype.kind in "iuf":
            changed[name] = frame[name].astype("str")
    return frame.assign(**changed)


def _same_columns(first: Raw, other: Raw) -> None:
    expected, got = list(first.frame.columns), list(other.frame.columns)
    missing = [name for name in expected if name not in got]
    extra = [name for name in got if name not in expected]
    name = Path(first.path).name
    if missing:
        raise MixwellError(f"{other.path} lacks the column {missing[0]!r}, which {name} has; expected files with the "
                           "same columns.")
    if extra:
        raise MixwellError(f"{other.path} has the column {extra[0]!r}, which {name} lacks; expected files with the "
                           "same columns.")


def _raw(source: Source, form: Form) -> Raw:
    """One file's rows."""
    with source.opened() as file:
        if not file.read(1):
            raise MixwellError(f"{source.name} is empty; expected a line of column names and rows under it.")
    if source.is_text:
        return _raw_text(source, form)
    frame, notes = _typed(source)
    return Raw(_checked(_with_index(frame), source.name), source.name, notes=notes)


def _typed(source: Source) -> tuple[pandas.DataFrame, tuple[str, ...]]:
    """Rows of a file that says itself what its columns are."""
    pandas = require()
    if source.ending in EXCEL_ENDINGS:
        return _excel(source)
    readers = {PARQUET_ENDINGS: ("Parquet", pandas.read_parquet), ARROW_ENDINGS: ("Arrow", pandas.read_feather),
               JSON_ENDINGS: ("JSON lines", _json_lines)}
    what, reader = next(pair for endings, pair in readers.items() if source.ending in endings)
    with source.opened() as file:
        data = io.BytesIO(file.read())
    try:
        _refuse_wide(_declared_width(data, source.ending), source.name)
        data.seek(0)
        frame = reader(data)
    except MixwellError:
        raise
    except Exception as error:  # each reader raises many kinds for what it cannot read
        raise MixwellError(f"{source.name} cannot be read as {what} ({_first_line(error)}).") from error
    _refuse_wide(frame.shape[1], source.name)  # what a first line did not declare
    return frame, ()


def _declared_width(data: io.BytesIO, ending: str) -> int:
    """The number of columns that a file says it has, before its values are read."""
    if ending in PARQUET_ENDINGS:
        from pyarrow import parquet

        return len(parquet.read_schema(data))
    if ending in ARROW_ENDINGS:
        from pyarrow import ipc

        # its first version has another form, and is looked at when it is read
        return len(ipc.open_file(data).schema) if data.getvalue().startswith(b"ARROW1") else 0
    first = json.loads(data.readline() or "{}")
    return len(first) if isinstance(first, dict) else 0


def _json_lines(data: io.BytesIO) -> pandas.DataFrame:
    return require().read_json(data, lines=True, dtype=False)


def _excel(source: Source) -> tuple[pandas.DataFrame, tuple[str, ...]]:
    """The first sheet of a workbook."""
    pandas = require()
    try:
        with source.opened() as file, pandas.ExcelFile(io.BytesIO(file.read())) as book:
            sheets = book.sheet_names
            head = book.parse(sheets[0], nrows=0)
            _refuse_wide(head.shape[1], source.name)
            frame = book.parse(sheets[0], keep_default_na=False, na_values=[""])
    except ImportError as error:
        raise MixwellError(f"{source.name} is an Excel workbook, which needs openpyxl: pip install openpyxl, or "
                           "save it as CSV.") from error
    except MixwellError:
        raise
    except Exception as error:  # openpyxl raises many kinds for what is no workbook
        raise MixwellError(f"{source.name} cannot be read as an Excel workbook ({_first_line(error)}).") from error
    notes = (f"sheet {sheets[0]!r}, the first of {len(sheets)}",) if len(sheets) > 1 else ()
    return frame, notes


def _raw_text(source: Source, form: Form) -> Raw:
    """A text file's rows, every field as it is written."""
    pandas = require()
    encoding, note = encoding_of(source, form.encoding)
    try:
        head, whole = _head(source, encoding)
        if not head.strip():
            raise MixwellError(f"{source.name} is empty; expected a line of column names and rows under it.")
        dialect = dialect_of(head, form, source.name, whole)
        _refuse_wide(len(dialect.names), source.name)
        with source.text(encoding) as file:
            frame = _fields(pandas, file, dialect)
        frame = _without_trailing(frame, dialect, source.name)
        if frame.shape[1] > 1 and (frame.iloc[:, -1] == "").any():  # as it is where a row is short
            with source.text(encoding) as file:
                _no_short_row(file, dialect, source.name)
    except UnicodeError as error:
        raise MixwellError(f"{source.name} is no text in {encoding} ({_first_line(error)}); name its encoding with "
                           "--encoding.") from error
    except pandas.errors.ParserWarning as error:
        raise MixwellError(f"{source.name} has rows with more fields than column names; name every column.") from error
    except (pandas.errors.ParserError, csv.Error) as error:
        raise MixwellError(f"{source.name} is not a proper table: {_place(error, dialect)}.") from error
    notes = ((note,) if note else ()) + dialect.notes
    return Raw(_checked(frame, source.name), source.name, dialect.delimiter, _bare_marks(head, dialect), notes)


def _head(source: Source, encoding: str) -> tuple[str, bool]:
    """The beginning of a text, some lines of it at least, and whether it is all there is."""
    with source.text(encoding) as file:
        head = file.read(SNIFFED)
        while head.count("\n") < LEAST_LINES and len(head) < LONGEST:
            more = file.read(SNIFFED)
            if not more:
                return head, True
            head += more
        return head, not file.read(1)


def _refuse_wide(count: int, name: str) -> None:
    if count > MOST_COLUMNS:
        raise MixwellError(f"{name} has {count} columns; at most {MOST_COLUMNS} are read from a file. Save it with "
                           "those that matter.")


def _fields(pandas: Any, file: Any, dialect: Dialect) -> pandas.DataFrame:
    """Every field of the rows under the header, as text."""
    for _ in range(dialect.skip):
        file.readline()
    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)  # fields beyond the names would be lost
        try:
            return pandas.read_csv(file, sep=dialect.separator, header=None, names=list(dialect.names), dtype=str,
                                   keep_default_na=False, skipinitialspace=True, index_col=False, on_bad_lines="error")
        except pandas.errors.EmptyDataError:
            return pandas.DataFrame(columns=list(dialect.names), dtype=str)


def _without_trailing(frame: pandas.DataFrame, dialect: Dialect, name: str) -> pandas.DataFrame:
    """Without the field after the last delimiter of every row, which must be empty."""
    if not dialect.trailing:
        return frame
    if (frame.iloc[:, -1] != "").any():
        raise MixwellError(f"{name} has rows with more fields than column names; name every column.")
    return frame.iloc[:, :-1]


def _place(error: Exception, dialect: Dialect) -> str:
    """The first line of an error, which counts lines from below the header, with the file's own number."""
    def own(match: re.Match[str]) -> str:
        return f"line {int(match[1]) + dialect.skip}"

    return re.sub(r"line (\d+)", own, _first_line(error))


def _bare_marks(head: str, dialect: Dialect) -> frozenset[str]:
    """Marks of missing values that stand without quotes in a file that quotes its words."""
    if '"' not in head or dialect.delimiter not in head:
        return frozenset()
    body = head.splitlines()[dialect.skip :]
    fields = [field.strip() for line in body for field in line.split(dialect.delimiter)]
    words = [field for field in fields if field[:1].isalpha() and field.lower() not in TRUTH]
    marks = {word for word in words if word.lower() in AMONG_NUMBERS}
    return frozenset(marks) if len(set(words)) == len(marks) else frozenset()


def _no_short_row(file: Any, dialect: Dialect, name: str) -> None:
    """pandas would fill it up with missing values, though what is lost may have stood in its middle."""
    for _ in range(dialect.skip):
        file.readline()
    rows = rows_of(file, dialect.delimiter)
    width = len(dialect.names)
    with suppress(csv.Error):  # a field longer than csv reads; pandas reads it
        for number, row in enumerate(rows, start=1):
            if len(row) < width:
                raise MixwellError(f"{name} has {len(row)} of {width} fields in row {number}; expected all, empty "
                                   "where a value is missing.")


def _refuse_total(table: Table) -> None:
    """Refuse a last row that holds the totals of those above, which is no row of its own."""
    frame = table.frame
    if len(frame) < 4:
        return
    last = len(frame) - 1
    row = frame.iloc[last]
    totals = [word for word in row if _means_total(word)]
    if not totals:
        return
    total = totals[0]
    for name in frame.columns:
        values = frame[name]
        if values.dtype.kind in "if" and _sums_up(values.to_numpy(float)):
            raise MixwellError(f"{table.row(last)} of {table.name} ({total!r}) holds the total or the mean of "
                               f"{name!r} above it; take it out, it is no row of its own.")


def _means_total(value: Any) -> bool:
    """Whether a value is a word for a total or a mean."""
    if not isinstance(value, str):
        return False
    word = value.strip(" :")
    return TOTAL.fullmatch(word) is not None


def _sums_up(values: Any) -> bool:
    """Whether the last value is the sum or the mean of the others."""
    import numpy as np

    above = values[:-1]
    found = (np.nansum(above), np.nanmean(above))
    return any(np.isclose(values[-1], one, rtol=1e-3, atol=0) for one in found)


def _checked(frame: pandas.DataFrame, name: str) -> pandas.DataFrame:
    frame.columns = [str(c) for c in frame.columns]
    if not len(frame.columns):
        raise MixwellError(f"{name} has no columns.")
    if not len(frame):
        raise MixwellError(f"{name} has no rows; expected at least one under the column names.")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise MixwellError(f"{name} has two columns named {twice[0]!r}; rename one.")
    return frame


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else type(error).__name__
    return first.rstrip(".")
