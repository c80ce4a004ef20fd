"""How a text file writes a table: delimiter, lines above it, column names, row names. Decided on the file's beginning.

`--delimiter`, `--header` and `--skip-rows` take the place of what is found.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mixwell.core.errors import MixwellError
from mixwell.tables.missing import Form, is_mark
from mixwell.tables.numerals import MINUSES, _kind, core

DELIMITERS = (",", ";", "\t", "|")
BLANK = " "  # any run of spaces and tabs
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", BLANK: "spaces"}
LOOKED_AT, FIELDS = 200, 200  # rows, and fields of each, that a choice rests on
COMMENT = "#"
DECLARED = re.compile(r"sep=(.)\s*")  # Excel's own first line


@dataclass(frozen=True)
class Dialect:
    """What is above the rows, and how they are written."""

    delimiter: str
    skip: int  # lines of the file before the first row
    names: tuple[str, ...]  # one a field; row names and a field after the last delimiter have made-up ones
    header: bool  # whether a line of the file names the columns
    notes: tuple[str, ...] = ()
    trailing: bool = False  # whether every row ends in a delimiter

    @property
    def separator(self) -> str:
        """As pandas takes it."""
        return r"\s+" if self.delimiter == BLANK else self.delimiter


@dataclass(frozen=True)
class Line:
    """A row of fields, and the number of lines up to its end."""

    fields: list[str]
    end: int

    @property
    def width(self) -> int:
        """Number of fields."""
        return len(self.fields)

    @property
    def filled(self) -> int:
        """Number of fields that hold something."""
        return sum(bool(field.strip()) for field in self.fields)


def rows_of(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """The fields of every row that has any."""
    return (line.fields for line in _lines(lines, delimiter))


def _lines(lines: Iterable[str], delimiter: str) -> Iterator[Line]:
    blank = delimiter == BLANK
    source = (line.strip().replace("\t", " ") for line in lines) if blank else lines
    rows = csv.reader(source, delimiter=delimiter, skipinitialspace=True)
    for fields in rows:
        if len(fields) > 1 or (fields and fields[0].strip()):
            yield Line(fields, rows.line_num)


def sniff(head: str, whole: bool = True) -> str:
    """The delimiter that gives the first lines equally many fields, each a number or a word; else a comma.

    whole: whether `head` is all there is; else its last line may be cut.
    """
    lines = _complete(head, whole)
    declared = DECLARED.fullmatch(lines[0]) if lines else None
    if declared:
        return declared[1]
    scores = {delimiter: _score(lines, delimiter) for delimiter in DELIMITERS}
    best = max(DELIMITERS, key=scores.__getitem__)
    if scores[best][2] > 1:
        return best
    return BLANK if _is_blank_table(lines) else ","


def _complete(head: str, whole: bool) -> list[str]:
    lines = head.splitlines(keepends=True)
    if not whole and len(lines) > 1:
        lines.pop()
    return lines[:LOOKED_AT]


def _score(lines: Sequence[str], delimiter: str) -> tuple[bool, float, int]:
    """Whether the first line takes part, the share of clean fields, their number; zeros where rows differ."""
    rows = _parsed(lines, delimiter)
    width, first = _body(rows)
    if width < 2:
        return False, 0.0, 0
    body = rows[first:]
    fields = [field for row in body for field in row.fields[:FIELDS]]
    clean = sum(map(_clean, fields))
    return first == 0, clean / len(fields), width


def _clean(field: str) -> bool:
    """Whether a field is a number, or holds no delimiter."""
    inside = any(delimiter in field for delimiter in DELIMITERS)
    return not inside or _kind(core(field)) != "other"


def _parsed(lines: Sequence[str], delimiter: str) -> list[Line]:
    try:
        return list(_lines(lines, delimiter))
    except csv.Error:
        return []


def _body(rows: Sequence[Line]) -> tuple[int, int]:
    """Width of nearly all rows, and the first of them (which may be a header that is one field short)."""
    if not rows:
        return 0, 0
    widths = [row.width for row in rows]
    width, _ = Counter(widths).most_common(1)[0]
    first = widths.index(width)
    above = widths[first - 1] if first else 0
    if width > 2 and above == width - 1:
        first -= 1
    rest = widths[first:]
    needed = 0.9 * (len(rest) - 1)
    alike = rest.count(width) >= needed
    return (width, first) if alike else (0, 0)


def _is_blank_table(lines: Sequence[str]) -> bool:
    """Whether runs of spaces separate fields, most of which are numbers."""
    rows = _parsed(lines, BLANK)
    width, first = _body(rows)
    if width < 2:
        return False
    below = rows[first + 1 :]
    fields = [field for row in below for field in row.fields]
    numbers = sum(map(_is_number, fields))
    return 2 * numbers >= len(fields) > 0


def _is_number(field: str) -> bool:
    return _kind(core(field)) != "other"


def dialect_of(head: str, form: Form, path: str, whole: bool = True) -> Dialect:
    """The dialect of a file that begins with `head`; a `MixwellError` where names or rows are missing."""
    delimiter = form.delimiter or sniff(head, whole)
    if delimiter == form.decimal:
        delimiter = ";"  # of no field: lines are one number each
    lines = _complete(head, whole)
    rows = _parsed(lines, delimiter)
    notes = [] if delimiter == "," else [f"fields are separated by {NAMES.get(delimiter, repr(delimiter))}"]
    first = _first(rows, form, notes)
    rows = rows[first:]
    if delimiter == "," and first and _may_be_decimals(rows):
        notes.append("every line may be one number with a decimal comma: then pass --decimal ,")
    if not rows:
        raise MixwellError(f"{path} has no rows; expected at least one under the column names.")
    header = _has_header(rows) if form.header is None else form.header
    body = rows[1:] if header else rows
    width = Counter(row.width for row in body).most_common(1)[0][0] if body else rows[0].width
    if not header:
        notes.append("no line names the columns")
        skip = lines_before(rows[0], lines)
        return Dialect(delimiter, skip, _numbered(width), False, tuple(notes))
    names, trailing = _names(rows[0].fields, body, width, path, notes)
    _differ(names, path)
    return Dialect(delimiter, rows[0].end, names, True, tuple(notes), trailing)


def lines_before(row: Line, lines: Sequence[str]) -> int:
    """Lines of the file before a row, which may be several lines long where quotes hold their ends."""
    start = row.end - 1
    text = row.fields[0].splitlines()
    return max(start - max(len(text) - 1, 0), 0) if lines else 0


def _may_be_decimals(rows: Sequence[Line]) -> bool:
    """Whether all lines are two whole numbers, under a line that names one column."""
    for row in rows[:LOOKED_AT]:
        whole = map(str.isdecimal, row.fields)
        if row.width != 2 or not all(whole):
            return False
    return True


def _numbered(width: int) -> tuple[str, ...]:
    places = range(1, width + 1)
    return tuple(f"column {place}" for place in places)


def _first(rows: Sequence[Line], form: Form, notes: list[str]) -> int:
    """The first row of the table: under titles, comments, and what `--skip-rows` names."""
    if form.skip_rows is not None:
        return next((i for i, row in enumerate(rows) if row.end > form.skip_rows), len(rows))
    first = _under_titles(rows)
    if first:
        title = rows[0].fields[0].strip()
        notes.append(f"{first} line{'s' * (first > 1)} above the table left out ({title[:40]!r})")
    return first


def _under_titles(rows: Sequence[Line]) -> int:
    """How many rows at the top are titles or comments: one field alone where rows have several."""
    width, _ = _body(rows)
    for i, row in enumerate(rows):
        first = row.fields[0]
        comment = first.lstrip().startswith(COMMENT)
        narrow = row.width == 1 or width > 2
        alone = width > 1 and row.filled == 1 and narrow
        declared = first == "sep="
        if not (comment or alone or declared):
            return i
    return 0


def _has_header(rows: Sequence[Line]) -> bool:
    """Whether the first row names columns: a word over a column of numbers, or words that no row repeats."""
    first, body = rows[0].fields, rows[1:LOOKED_AT]
    over_numbers = [_names_numbers(field, _column(body, i)) for i, field in enumerate(first[:FIELDS])]
    if True in over_numbers:
        return True
    if False in over_numbers:
        return False
    repeated = [field in _column(body, i) for i, field in enumerate(first)]
    return not all(repeated) if body else not all(map(_is_number, first))


def _column(rows: Sequence[Line], i: int) -> list[str]:
    return [row.fields[i] for row in rows if i < row.width]


def _names_numbers(field: str, column: Sequence[str]) -> bool | None:
    """Whether a word stands over a column of numbers; None where the column holds none or the field nothing."""
    there = [text for text in column if not is_mark(text)]
    if not there or is_mark(field):
        return None
    numbers = sum(map(_is_number, there))
    if numbers < 0.9 * len(there):
        return None
    return not _is_number(field)


def _names(fields: Sequence[str], body: Sequence[Line], width: int, path: str,
           notes: list[str]) -> tuple[tuple[str, ...], bool]:
    """A name for every field of the rows, and whether rows end in a delimiter that names no field."""
    given = [field.strip().translate(MINUSES) if not field.strip() else field.strip() for field in fields]
    names = [name or f"Unnamed: {i}" for i, name in enumerate(given)]
    if width == len(names) + 1:
        if all(not row.fields[-1].strip() for row in body if row.width == width):
            return (*names, f"Unnamed: {len(names)}"), True
        if _are_row_names(_column(body, 0)):
            notes.append("the first field of every row is its name, as R writes it")
            return ("row", *names), False
    if width > len(names):
        raise MixwellError(f"{path} has rows with more fields than column names; name every column.")
    return tuple(names), False


def _are_row_names(column: Sequence[str]) -> bool:
    """Whether fields count the rows from 1, or are words of which no two are alike."""
    if len(set(column)) < len(column):
        return False
    counted = [str(i + 1) for i in range(len(column))]
    return list(column) == counted or not any(map(_is_number, column))


def _differ(names: Sequence[str], path: str) -> None:
    """pandas would rename the second."""
    for name, times in Counter(names).items():
        if times > 1:
            raise MixwellError(f"{path} has two columns named {name!r}; rename one.")
