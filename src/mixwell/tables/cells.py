"""Columns of text turned into numbers or words, by one decision a column, with the file's others beside it.

A column whose own values leave open whether `1.234` is one or a thousand follows the file's other columns. What was
decided and what was read as missing stands in a `Reading` for each column, which new rows are read by as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mixwell.tables.bulk import plain_numbers
from mixwell.tables.missing import AMONG_NUMBERS, Form, marks_words
from mixwell.tables.numerals import BARE_POWER, CODE, COMMA, DECIMALS, POINT, Tally, decided, marks, tally, value

if TYPE_CHECKING:
    import pandas

NUMBER_SHARE = 0.5  # a column of which this share are numbers is one of numbers, maybe with slips
LARGE = 50_000  # values from which the quick way pays
TALLIED = 5000  # values of which the decimal sign is judged
EXACT, LARGEST = 2**53, 2**63  # whole numbers that floats, and 64 bits, tell apart
TRUTH = frozenset(("true", "false"))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a column was read: its decimal sign where it has one, what stood for missing values, what there is to say."""

    decimal: str = ""
    written: bool = False  # as words, whatever they look like
    missing: Mapping[str, int] = field(default_factory=dict)  # mark -> how often
    examples: tuple[str, ...] = ()  # as the table writes them
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What a whole file does, and what a caller says of it."""

    form: Form = field(default_factory=Form)
    delimiter: str = ","
    bare: frozenset[str] = frozenset()  # marks without quotes in a file that quotes its words
    written: frozenset[str] = frozenset()  # columns that are words whatever they look like
    known: Mapping[str, Reading] = field(default_factory=dict)  # how a model's columns were read


@dataclass(frozen=True, eq=False)
class Text:
    """The values of a column: which of them differ, and which one each row holds."""

    unique: list[str]
    codes_N: np.ndarray  # -1 where nothing is there
    counts: np.ndarray

    def at(self, of_unique: Sequence[Any], nothing: Any, dtype: Any) -> np.ndarray:
        """A value a row, from one for each that differs."""
        table = np.empty(len(self.unique) + 1, dtype=dtype)
        table[:-1] = of_unique
        table[-1] = nothing
        return table[self.codes_N]


def text_of(values: pandas.Series) -> Text:
    """A column of text by its different values, in the order in which they appear."""
    import pandas

    codes_N, unique = pandas.factorize(values)
    texts = [str(text) for text in unique]
    there_N = codes_N[codes_N >= 0]
    counts = np.bincount(there_N, minlength=len(texts))
    return Text(texts, codes_N, counts)


def interpret(frame: pandas.DataFrame, habits: Habits) -> tuple[pandas.DataFrame, dict[str, Reading]]:
    """The frame with columns of text as numbers or words, None and NaN where missing; how each column was read."""
    import pandas

    large = frame.size >= LARGE
    columns: dict[str, Any] = {}
    readings: dict[str, Reading] = {}
    texts: dict[str, Text] = {}
    found: dict[str, Tally] = {}
    for name in frame.columns:
        values = frame[name]
        columns[name] = values  # keeps the order of the columns
        if not is_text(values):
            readings[name] = Reading(examples=_examples(values))
            continue
        quick = large and name not in habits.written
        bulk = plain_numbers(values, habits.form) if quick else None
        if bulk is None:
            texts[name] = text_of(values)
            found[name] = _tallied(texts[name], habits.form)
            continue
        numbers, missing, found[name] = bulk
        columns[name] = pandas.Series(numbers)
        readings[name] = Reading(decimal=POINT, missing=missing, examples=_shown(values, habits.form))
    house = _house(texts, found, readings)
    for name, text in texts.items():
        columns[name], readings[name] = _decided(name, text, found[name], house, habits)
    return pandas.DataFrame(columns, index=frame.index), readings


@dataclass(frozen=True)
class House:
    """What a file's columns do together."""

    decimal: str  # that most columns of numbers have; "" where none settles it
    marks: frozenset[str]  # that stand for missing values among numbers


def _house(texts: Mapping[str, Text], found: Mapping[str, Tally], readings: Mapping[str, Reading]) -> House:
    numeric = [one for one in found.values() if _numeric(one)]
    votes = Counter(filter(None, map(decided, numeric)))
    decimal = votes.most_common(1)[0][0] if votes else ""
    seen = {mark for reading in readings.values() for mark in reading.missing}
    for name, text in texts.items():
        if _numeric(found[name]):
            seen.update(one.strip() for one in text.unique)
    marks = frozenset(one for one in seen if one.lower() in AMONG_NUMBERS)
    return House(decimal, marks)


def _decided(name: str, text: Text, found: Tally, house: House, habits: Habits) -> tuple[Any, Reading]:
    """A column of text as numbers or words."""
    known = habits.known.get(name)
    nothing = found.numbers == found.other == 0
    numeric = _numeric(found) or (nothing and known is not None and bool(known.decimal))
    as_written = name in habits.written or _are_codes(text, habits.form)
    if as_written or not numeric:
        return _words(name, text, house.marks, habits)
    decimal, notes = _decimal(name, found, house.decimal, habits)
    return _numbers(text, decimal, notes, habits.form)


def _shown(values: pandas.Series, form: Form) -> tuple[str, ...]:
    """The first values of a column of text that are there."""
    first = [str(value).strip() for value in values.head(1000)]
    there = [one for one in first if not _marks_number(one, form)]
    return _distinct(there, 3)


def is_text(values: pandas.Series) -> bool:
    """Whether all values that are there are text."""
    import pandas

    if isinstance(values.dtype, pandas.CategoricalDtype):
        return False
    return pandas.api.types.infer_dtype(values, skipna=True) == "string"


def _examples(values: pandas.Series, count: int = 3) -> tuple[str, ...]:
    there = values.dropna().head(50)
    return _distinct((_short(value) for value in there), count)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _distinct(texts: Iterable[str], count: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))[:count]


def _tallied(text: Text, form: Form) -> Tally:
    """What the values say that are no marks; of many, the first."""
    there = [one for one in text.unique if not _marks_number(one, form)]
    return tally(there[:TALLIED])


def _marks_number(text: str, form: Form) -> bool:
    bare = text.strip()
    return bare.lower() in AMONG_NUMBERS or bare in form.missing


def _numeric(found: Tally) -> bool:
    """Whether a column is one of numbers, maybe with slips."""
    every = found.numbers + found.other
    return found.numbers > 0 and found.numbers >= NUMBER_SHARE * every


def _are_codes(text: Text, form: Form) -> bool:
    """Whether digits with leading zeros stand among whole numbers: names, such as those of places."""
    first = text.unique[:TALLIED]
    there = [one.strip() for one in first if not _marks_number(one, form)]
    whole = all(map(str.isdigit, there))
    return whole and any(map(CODE.fullmatch, there))


def _decimal(name: str, found: Tally, file_decimal: str, habits: Habits) -> tuple[str, list[str]]:
    """A column's decimal sign, and a note where its own values leave it open."""
    form = habits.form
    said = form.decimal or {COMMA: POINT, POINT: COMMA}.get(form.thousands, "")
    known = habits.known.get(name)
    own = decided(found) or (known.decimal if known else "")
    decimal = said or own or file_decimal or _by_default(found, habits.delimiter)
    if not said and file_decimal and file_decimal != decimal:
        return decimal, [f"its decimal sign is {decimal!r}, that of other columns {file_decimal!r}"]
    if not found.either or said or decided(found):
        return decimal, []
    example = found.either[0].strip()
    other = DECIMALS[decimal == POINT]
    taken = value(example, decimal)
    return decimal, [f"{example} is taken for {taken:.10g}; --decimal '{other}' takes it for "
                     f"{value(example, other):.10g}"]


def _by_default(found: Tally, delimiter: str) -> str:
    """The decimal sign where no value of the file settles it."""
    commas = [one for one in found.either if COMMA in one]
    if delimiter != ";":
        return POINT
    if commas:
        only = len(commas) == len(found.either)
        return COMMA if only else POINT
    grouped = found.plain and not found.long  # 950 and 1.234, but no 1234
    return COMMA if grouped else POINT


def _numbers(text: Text, decimal: str, notes: list[str], form: Form) -> tuple[Any, Reading]:
    """A column of numbers: integers where all are whole and there, floats, or objects where a text is none."""
    import pandas

    marked = [_marks_number(one, form) for one in text.unique]
    values = [np.nan if mark else value(one, decimal) for one, mark in zip(text.unique, marked)]
    slips = np.isnan(values) & ~np.array(marked)
    there = [one for one, mark in zip(text.unique, marked) if not mark]
    reading = Reading(decimal=decimal, missing=_missing(text, marked), examples=_distinct(there, 3),
                      notes=(*notes, *_told(there, decimal)))
    if slips.any():
        mixed = [one if slip else number for one, slip, number in zip(text.unique, slips, values)]
        return pandas.Series(text.at(mixed, np.nan, object)), reading
    if all(map(_is_whole, there)):
        return _whole(text, marked), reading
    return pandas.Series(text.at(values, np.nan, np.float64)), reading


def _is_whole(text: str) -> bool:
    bare = text.strip()
    return bare.removeprefix("-").isdecimal() and len(bare) < 400


def _whole(text: Text, marked: Sequence[bool]) -> Any:
    """Whole numbers, which stay whole where floats would merge some of them."""
    import pandas

    values = [np.nan if mark else int(one) for one, mark in zip(text.unique, marked)]
    absent = any(marked) or bool((text.codes_N < 0).any())
    sizes = [abs(one) for one, mark in zip(values, marked) if not mark]
    largest = max(sizes, default=0)
    if absent and largest >= EXACT:
        return pandas.Series(text.at(values, None, object))
    if absent:
        return pandas.Series(text.at(values, np.nan, np.float64))
    return pandas.Series(text.at(values, 0, np.int64 if largest < LARGEST else object))


def _told(there: Sequence[str], decimal: str) -> list[str]:
    """What a reader should know of numbers that are written with more than digits."""
    notes = []
    signs = marks(there[:TALLIED])
    if signs:
        notes.append(f"read without {' and '.join(signs)}")
    powers = [one for one in there[:TALLIED] if BARE_POWER.fullmatch(one.strip())]
    if powers:
        notes.append(f"{powers[0].strip()} is taken for {value(powers[0], decimal):.10g}")
    commas = [one for one in there if COMMA in one]
    if decimal == COMMA and commas:
        notes.append("decimal commas")
    return notes


def _missing(text: Text, marked: Sequence[bool]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for one, mark, count in zip(text.unique, marked, text.counts):
        if mark:
            found[one.strip()] += int(count)
    return dict(found)


def _words(name: str, text: Text, among_numbers: frozenset[str], habits: Habits) -> tuple[Any, Reading]:
    """A column of words; `NA` and `none` are words there unless the file says otherwise."""
    import pandas

    written = name in habits.written
    known = habits.known.get(name)
    elsewhere = frozenset[str]() if written else among_numbers
    if known is not None:
        elsewhere = frozenset(known.missing)
    absent = marks_words(text.unique, elsewhere, frozenset() if written else habits.bare)
    absent |= {one for one in text.unique if one.strip() in habits.form.missing}
    marked = [one in absent for one in text.unique]
    there = [one for one, mark in zip(text.unique, marked) if not mark]
    truth = {one.strip().lower() for one in there}
    plain = [one.strip() for one in text.unique]
    if truth and truth <= TRUTH and not written:
        plain = [one.capitalize() for one in plain]
    values = [None if mark else one for one, mark in zip(plain, marked)]
    kept = sorted(one.strip() for one in there if one.strip().lower() in AMONG_NUMBERS)
    notes = [f"{kept[0]!r} is taken for a word; --missing {kept[0]} takes it for missing"] if kept else []
    reading = Reading(written=written, missing=_missing(text, marked), examples=_distinct(there, 3), notes=tuple(notes))
    return pandas.Series(text.at(values, None, object)), reading
