"""Tables from CSV and Parquet files, a folder of them, or memory; Parquet back. Needs the optional extra `tables`.

Everything that a person may have to look up in the file is named as that person sees it: columns by their names, rows
counted from 1 without the header.
"""

from __future__ import annotations

import bisect
import csv
import gzip
import io
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixwell.core.errors import MixwellError, suggest
from mixwell.core.files import write_bytes

if TYPE_CHECKING:
    import pandas

TEXT_ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")
DELIMITERS = ",;\t|"
MISSING = ["?", "-", "–", "n.a.", "N.A.", "na", "none", "null"]  # beside those that pandas knows
SNIFFED_BYTES = 1 << 16


@dataclass(frozen=True, eq=False)
class Table:
    """A table in memory. `files` names where the rows come from: (file name, its first row here)."""

    frame: pandas.DataFrame
    name: str
    files: tuple[tuple[str, int], ...] = ()

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


def read(path: str | Path) -> Table:
    """Read a CSV file (delimiter found by itself), a Parquet file, or a folder of them with the same columns.

    What is no such table raises `MixwellError`, with the row where there is one to name.
    """
    pandas, path = require(), Path(path)
    with readable(path):
        if not path.exists():
            beside = path.parent.iterdir() if path.parent.is_dir() else ()
            near = suggest(path.name, [other.name for other in beside])
            raise MixwellError(f"{path} does not exist; expected a CSV or Parquet file, or a folder of them.{near}")
        if path.is_dir():
            return _read_folder(pandas, path)
        return Table(_read_file(pandas, path), path.name.split(".")[0])


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What the system refuses to read raises `MixwellError`, one line."""
    try:
        yield
    except OSError as error:
        raise MixwellError(f"{error.filename or path} cannot be read ({error.strerror or error}); see to it that the "
                           "file is there and that you may read it.") from error


def of(source: Any, name: str = "table") -> Table:
    """A table from a path, a DataFrame (pandas, Polars, Arrow), a mapping of columns, or a two-dimensional array.

    Anything else raises `MixwellError`.
    """
    if isinstance(source, Table):
        return source
    if isinstance(source, (str, Path)):
        return read(source)
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
    return Table(_checked(frame, name), name)


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


def _read_folder(pandas: Any, folder: Path) -> Table:
    paths = [path for path in folder.iterdir() if _is_text(path) or path.suffix == ".parquet"]
    paths.sort()
    if not paths:
        raise MixwellError(f"{folder} holds no .csv or .parquet file.")
    frames, files, rows = [], [], 0
    for path in paths:
        frame = _read_file(pandas, path)
        frames.append(frame)
        files.append((path.name, rows))
        rows += len(frame)
        _same_columns(frames[0].columns, frame.columns, paths[0], path)
    whole = pandas.concat(frames, ignore_index=True)
    return Table(whole, folder.resolve().name, tuple(files))


def _same_columns(expected: Sequence[str], got: Sequence[str], first: Path, path: Path) -> None:
    missing = [name for name in expected if name not in set(got)]
    extra = [name for name in got if name not in set(expected)]
    if missing:
        raise MixwellError(f"{path} lacks the column {missing[0]!r}, which {first.name} has; expected files with the "
                           "same columns.")
    if extra:
        raise MixwellError(f"{path} has the column {extra[0]!r}, which {first.name} lacks; expected files with the "
                           "same columns.")


def _is_text(path: Path) -> bool:
    return path.name.lower().endswith(TEXT_ENDINGS)


def _read_file(pandas: Any, path: Path) -> pandas.DataFrame:
    if path.stat().st_size == 0:
        raise MixwellError(f"{path} is empty; expected a line of column names and rows under it.")
    if path.suffix.lower() in (".parquet", ".pq"):
        try:
            frame = pandas.read_parquet(path)
        except Exception as error:  # pyarrow raises many kinds for what is not Parquet
            raise MixwellError(f"{path} cannot be read as Parquet ({_first_line(error)}).") from error
        return _checked(_with_index(frame), str(path))
    if not _is_text(path):
        raise MixwellError(f"{path}: expected a table that ends in {', '.join(TEXT_ENDINGS)} or .parquet.")
    return _checked(_read_text(pandas, path), str(path))


def _read_text(pandas: Any, path: Path) -> pandas.DataFrame:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            head = file.read(SNIFFED_BYTES)
        if not head.strip():
            raise MixwellError(f"{path} is empty; expected a line of column names and rows under it.")
        delimiter = sniff(head)
        decimal = "," if delimiter in ";\t|" and re.search(r"(^|[;\t|])-?\d+,\d+([;\t|]|$)", head, re.M) else "."
        names = _names(head, delimiter)
        if names is None:
            _no_name_twice(head, delimiter, path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # fields beyond the names would be lost
            frame = pandas.read_csv(path, sep=delimiter, decimal=decimal, na_values=MISSING, encoding="utf-8-sig",
                                    low_memory=False, skipinitialspace=True, index_col=False, on_bad_lines="error",
                                    **({} if names is None else {"header": None, "names": names}))
        if frame.shape[1] > 1 and frame.iloc[:, -1].isna().any():  # as it is where a row is short
            with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
                _no_short_row(csv.reader(file, delimiter=delimiter), names is None, path)
    except UnicodeDecodeError as error:
        raise MixwellError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except pandas.errors.ParserWarning as error:
        raise MixwellError(f"{path} has rows with more fields than column names; name every column.") from error
    except (pandas.errors.ParserError, gzip.BadGzipFile, EOFError, zlib.error, csv.Error) as error:
        raise MixwellError(f"{path} is not a proper table: {_first_line(error)}.") from error
    return frame


def sniff(head: str) -> str:
    """The delimiter with which the first lines have the same number of fields, and most of them; else a comma."""
    lines = head.splitlines()[:50]
    if len(head) == SNIFFED_BYTES and len(lines) > 1:
        lines.pop()  # it may be cut
    best, found = 1, ","
    for delimiter in DELIMITERS:
        width = _width(lines, delimiter)
        if width > best:
            best, found = width, delimiter
    return found


def _width(lines: Sequence[str], delimiter: str) -> int:
    """The number of fields of the first line, where nearly all have as many; else 0."""
    rows = csv.reader(lines, delimiter=delimiter)
    widths = [len(row) for row in rows if row]
    if not widths:
        return 0
    common = max(set(widths), key=widths.count)
    alike = widths.count(common) >= 0.9 * len(widths)
    first = widths[0]
    return common if alike and first == common else 0


def _first_row(head: str, delimiter: str) -> list[str]:
    for row in csv.reader(head.splitlines(), delimiter=delimiter):
        if row:
            return row
    return []


def _no_name_twice(head: str, delimiter: str, path: Path) -> None:
    """pandas would rename the second."""
    names = [name.strip() for name in _first_row(head, delimiter)]
    if len(head.splitlines()) == 1:
        names.pop()  # it may be cut
    seen: set[str] = set()
    for name in filter(None, names):
        if name in seen:
            raise MixwellError(f"{path} has two columns named {name!r}; rename one.")
        seen.add(name)


def _no_short_row(rows: Iterator[list[str]], header: bool, path: Path) -> None:
    """pandas would fill it up with missing values, though what is lost may have stood in its middle."""
    rows = (row for row in rows if len(row) > 1 or (row and row[0].strip()))
    with suppress(csv.Error):  # a field longer than csv reads; pandas reads it
        width = len(next(rows))
        for number, row in enumerate(rows, start=1 if header else 2):
            if len(row) < width:
                raise MixwellError(f"{path} has {len(row)} of {width} fields in row {number}; expected all, empty "
                                   "where a value is missing.")


def _names(head: str, delimiter: str) -> list[str] | None:
    """Names for a file whose first line holds numbers already; None where it names the columns."""
    first = _first_row(head, delimiter)
    if first and all(re.fullmatch(r"\s*[-+]?[\d.,]+([eE][-+]?\d+)?\s*", field) for field in first):
        return [f"column {i + 1}" for i in range(len(first))]
    return None


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
