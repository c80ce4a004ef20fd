"""Which columns of a table are used, and how: numbers, counts, categories; what is left out and why.

`choose` looks at a table once; `encode` turns any table with these columns into rows of float64, NaN where a value is
missing: numbers in standard deviations from the mean, counts as they are, categories as codes from 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mixwell.core.errors import MixwellError, suggest
from mixwell.tables.cells import Reading
from mixwell.tables.kinds import (
    BATTERY,
    CATEGORY,
    COUNT,
    EXACT,
    FARTHEST,
    KINDS,
    LEAST_VARIANCE,
    MIXED_SHARE,
    MOST_CATEGORIES,
    NUMERIC,
    SKIP,
    answers,
    far_mark,
    foreign,
    judge_numbers,
    merged,
    resolution,
)
from mixwell.tables.reading import Table

if TYPE_CHECKING:
    import pandas

AT_ONCE = 1 << 16  # rows, so that large tables are not copied


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table and what became of it."""

    name: str
    kind: str  # numeric, count, category, skip
    note: str = ""  # why it was left out, or what there is to say
    center: float = 0.0  # numeric: the mean
    scale: float = 1.0  # numeric: the standard deviation
    floor: float = LEAST_VARIANCE  # numeric: least variance of a component, in units of scale²
    categories: tuple[str, ...] = ()
    missing: int = 0
    why: str = ""  # what speaks for the kind
    decimal: str = ""  # the sign that its text has, where it was text
    written: bool = False  # words, whatever they look like
    marks: tuple[str, ...] = ()  # what stood for missing values

    @property
    def reading(self) -> Reading:
        """How text of the column is to be read."""
        missing = dict.fromkeys(self.marks, 0)
        return Reading(decimal=self.decimal, written=self.written, missing=missing)


def choose(table: Table, wanted: Mapping[str, str] | None = None) -> list[Column]:
    """Every column of the table with its kind. `wanted` overrules by name: numeric, count, category or skip.

    Infinite values, a column that mixes numbers and text, and a table without a usable column raise `MixwellError`.
    """
    wanted = dict(wanted or {})
    names = [str(name) for name in table.frame.columns]
    _check_wanted(wanted, names)
    if len(table.frame) < 2:
        raise MixwellError(f"{table.name} has 1 row; expected at least 2, a mixture describes how rows differ.")
    looked = [_look(table, name, wanted.get(name)) for name in names]
    columns = [_with_reading(column, table) for column in alike(table, looked, wanted)]
    if not used(columns):
        reasons = [f"{column.name}: {column.note}" for column in columns[:4]]
        raise MixwellError(f"{table.name} has no column to fit ({'; '.join(reasons)}).")
    return columns


def _with_reading(column: Column, table: Table) -> Column:
    """The column with what was read as missing, and what there is to say of it."""
    reading = table.readings.get(column.name)
    if reading is None:
        return column
    parts = (column.note, *reading.notes)
    note = "; ".join(part for part in parts if part)
    return replace(column, note=note, decimal=reading.decimal, written=reading.written, marks=tuple(reading.missing))


def _check_wanted(wanted: Mapping[str, str], names: Sequence[str]) -> None:
    for name, kind in wanted.items():
        if name not in names:
            raise MixwellError(f"there is no column {name!r}.{suggest(name, names)} The table has {', '.join(names)}.")
        if kind not in KINDS:
            raise MixwellError(f"column {name!r} cannot be {kind!r}; expected one of {', '.join(KINDS)}.")


def used(columns: Iterable[Column]) -> list[Column]:
    """The columns that take part."""
    return [column for column in columns if column.kind != SKIP]


def encode(table: Table, columns: Sequence[Column], *, unknown: str = "error") -> np.ndarray:
    """Rows (N, D) of the used columns. `unknown`: "error" or "missing", what a new category is taken for.

    What the table lacks, and values that a column cannot hold, raise `MixwellError` with column and row.
    """
    if unknown not in ("error", "missing"):
        raise MixwellError(f"an unknown category is taken for 'error' or 'missing', not for {unknown!r}.")
    columns = used(columns)
    needed = [column.name for column in columns]
    names = [str(name) for name in table.frame.columns]
    known = set(names)
    for name in needed:
        if name not in known:
            raise MixwellError(f"{table.name} lacks the column {name!r}.{suggest(name, names)} The model was fitted on "
                               f"{', '.join(needed)}.")
    x_ND = np.empty((len(table.frame), len(columns)))
    for place, column in enumerate(columns):
        x_ND[:, place] = _encode_column(table, column, unknown)
    return x_ND


def _encode_column(table: Table, column: Column, unknown: str) -> np.ndarray:
    values = table.frame[column.name]
    if column.kind == CATEGORY:
        return _codes(table, column, values, unknown)
    x_N = numbers(table, column.name, values)
    if column.kind == COUNT:
        return _counts(table, column.name, x_N)
    with np.errstate(over="ignore"):
        standard_N = (x_N - column.center) / column.scale
    row = _first(np.abs(standard_N) > FARTHEST)
    if row is not None:
        raise MixwellError(f"column {column.name!r} holds {x_N[row]:g} in {table.row(row)}, more than {FARTHEST:.0e} "
                           f"standard deviations from the mean of {column.center:g}: no component has it; correct it, "
                           "or leave it empty.")
    return standard_N


def log_units(columns: Sequence[Column], x_ND: np.ndarray) -> np.ndarray:
    """Logarithm (N,) of the units that the values of every row are in: what a density loses in the data's own."""
    scale_D = np.array([column.scale for column in used(columns)])
    log_D = np.log(scale_D)
    found_N = np.empty(len(x_ND))
    for first in range(0, len(x_ND), AT_ONCE):
        there_BD = ~np.isnan(x_ND[first : first + AT_ONCE])
        found_N[first : first + AT_ONCE] = there_BD @ log_D
    return found_N


def decode(column: Column, x_N: np.ndarray) -> np.ndarray:
    """Encoded values in the data's own units; categories as their names, None where missing."""
    if column.kind == NUMERIC:
        return x_N * column.scale + column.center
    if column.kind == COUNT:
        return x_N
    names = np.array([*column.categories, None], dtype=object)
    absent = len(column.categories)
    codes_N = np.nan_to_num(x_N, nan=absent)
    return names[codes_N.astype(int)]


def in_one_scale(columns: Sequence[Column]) -> list[Column]:
    """Columns whose numbers are only moved and multiplied by one number for all, as they were measured."""
    scales = [column.scale for column in used(columns) if column.kind == NUMERIC]
    if not scales:
        return list(columns)
    scale = float(np.sqrt(np.mean(np.square(scales))))
    return [_rescaled(column, scale) if column.kind == NUMERIC else column for column in columns]


def _rescaled(column: Column, scale: float) -> Column:
    ratio = column.scale / scale
    return replace(column, scale=scale, floor=column.floor * ratio**2)


def numbers(table: Table, name: str, values: pandas.Series) -> np.ndarray:
    """A column as float64, NaN where missing; text and infinities raise `MixwellError` with their row."""
    plain_numbers = isinstance(values.dtype, np.dtype) and values.dtype.kind in "iuf"
    if plain_numbers:
        x_N = values.to_numpy(dtype=np.float64)
        _check_finite(table, name, x_N)
        return x_N
    there = values.notna()
    plain = values.astype(object).where(there, None)
    x_N = _parsed(plain)
    row = _first(np.isnan(x_N) & there.to_numpy())
    if row is not None:
        raise MixwellError(f"column {name!r} holds {_shown(values.iloc[row])} in {table.row(row)}; expected a number.")
    _check_finite(table, name, x_N)
    return x_N


def _parsed(values: pandas.Series) -> np.ndarray:
    """Values of any type as float64, NaN where one is missing or no number."""
    import pandas

    try:
        found = pandas.to_numeric(values, errors="coerce")
        return found.to_numpy(dtype=np.float64, na_value=np.nan)
    except (OverflowError, TypeError):  # whole numbers of hundreds of digits; complex numbers
        return np.array([_float(value) for value in values], dtype=np.float64)


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return np.inf
    except (TypeError, ValueError):
        return np.nan


def _check_finite(table: Table, name: str, x_N: np.ndarray) -> None:
    row = _first(np.isinf(x_N))
    if row is not None:
        raise MixwellError(f"column {name!r} is infinite in {table.row(row)}; correct it, or leave it empty.")


def _first(strange_N: np.ndarray) -> int | None:
    """The first row that is marked."""
    return int(strange_N.argmax()) if strange_N.any() else None


def text(value: Any) -> str:
    """A category's name, the same whether it came as 2, 2.0 or '2'."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def _codes(table: Table, column: Column, values: pandas.Series, unknown: str) -> np.ndarray:
    known = {name: float(code) for code, name in enumerate(column.categories)}
    there_N = values.notna().to_numpy()
    names = [text(value) for value in values]
    found_N = np.array([known.get(name, -1.0) for name in names])
    strange_N = there_N & (found_N == -1)
    row = _first(strange_N)
    if row is not None and unknown == "error":
        name = names[row]
        more = " ..." if len(known) > 8 else ""
        raise MixwellError(f"column {column.name!r} has the unknown category {name!r} in {table.row(row)}."
                           f"{suggest(name, known)} The model knows {', '.join(column.categories[:8])}{more}.")
    return np.where(strange_N | ~there_N, np.nan, found_N)


def _counts(table: Table, name: str, x_N: np.ndarray) -> np.ndarray:
    fraction_N = np.nan_to_num(x_N) % 1
    row = _first((x_N < 0) | (fraction_N != 0) | (x_N > EXACT))
    if row is not None:
        raise MixwellError(f"column {name!r} holds {x_N[row]:g} in {table.row(row)}; expected a count (0, 1, 2, ...).")
    return x_N


def _look(table: Table, name: str, wanted: str | None) -> Column:
    """One column judged; `wanted` overrules the judgement, not the checks."""
    values = table.frame[name]
    there = values.dropna()
    missing = len(values) - len(there)
    if wanted == SKIP:
        return Column(name=name, kind=SKIP, note="left out as asked", missing=missing)
    if not len(there):
        return Column(name=name, kind=SKIP, note="empty", missing=missing)
    strange = foreign(there) if wanted is None else ""
    if strange:
        return Column(name=name, kind=SKIP, note=f"{strange} are not modelled", missing=missing)
    if wanted == CATEGORY or (wanted is None and not _numeric(table, name, values, there)):
        return _category(name, there, missing, wanted is not None)
    x_N = numbers(table, name, values)
    seen = x_N[~np.isnan(x_N)]
    kind, why = (wanted, "as asked") if wanted else judge_numbers(name, seen)
    if merged(there, seen):
        kind, why = SKIP, "whole numbers beyond 2^53, some of which floats cannot tell apart"
    elif seen.min() == seen.max():
        kind, why = SKIP, f"constant ({seen[0]:g} in every row)"
    if kind == SKIP:
        return Column(name=name, kind=kind, note=why, missing=missing)
    if kind == CATEGORY:
        return replace(_category(name, there, missing, True), why=why)
    note = far_mark(seen)
    if kind == COUNT:
        _counts(table, name, x_N)
        return Column(name=name, kind=kind, note=note, why=why, missing=missing)
    return _number(name, seen, missing, note, why)


def _number(name: str, seen: np.ndarray, missing: int, note: str, why: str) -> Column:
    center = float(seen.mean())
    scale = float(seen.std())
    if not np.isfinite(scale) or scale <= 1e-14 * abs(center):
        return Column(name=name, kind=SKIP, note="varies less than its rounding errors", missing=missing)
    step = resolution(seen) / scale
    floor = max(LEAST_VARIANCE, step**2 / 12)
    return Column(name=name, kind=NUMERIC, note=note, why=why, center=center, scale=scale, missing=missing, floor=floor)


def _numeric(table: Table, name: str, values: pandas.Series, there: pandas.Series) -> bool:
    """Whether a column holds numbers; one that mixes numbers and text is refused."""
    import pandas

    if pandas.api.types.is_bool_dtype(values.dtype) or isinstance(values.dtype, pandas.CategoricalDtype):
        return False
    if pandas.api.types.is_numeric_dtype(values.dtype):
        return True
    if all(isinstance(v, (bool, np.bool_)) for v in there):
        return False
    is_number = ~np.isnan(_parsed(there.astype(object)))
    place = _first(~is_number)
    if place is None:
        return True
    if not is_number.mean() >= MIXED_SHARE:
        return False
    raise MixwellError(f"column {name!r} mixes numbers and text: {_shown(there.iloc[place])} in "
                       f"{table.row(int(there.index[place]))}. Correct it or leave it empty, or say what the column is "
                       f"({name}=category).")


def _category(name: str, there: pandas.Series, missing: int, wanted: bool) -> Column:
    found = {text(value) for value in there}
    try:
        names = tuple(sorted(found, key=float))
    except ValueError:
        names = tuple(sorted(found))
    note = ""
    if len(names) == 1:
        note = f"constant ({names[0]!r} in every row)"
    elif not wanted and len(names) > max(MIXED_SHARE * len(there), 2):
        note = f"{len(names)} different values in {len(there)} rows, more like names than categories"
    elif not wanted and len(names) > MOST_CATEGORIES:
        note = f"{len(names)} different values, too many for shares"
    if note:
        return Column(name=name, kind=SKIP, note=note, missing=missing)
    why = "as asked" if wanted else f"{len(names)} different words"
    return Column(name=name, kind=CATEGORY, categories=names, missing=missing, why=why)


def _shown(value: Any) -> str:
    whole = str(value)
    if len(whole) <= 40:
        return repr(value)
    return repr(f"{whole[:37]}...")


def alike(table: Table, columns: Sequence[Column], wanted: Mapping[str, str]) -> list[Column]:
    """The columns, with the items of one battery of questions treated as one kind.

    A battery is three columns and more of whole numbers between the same two ends, at most ten apart. Its items are
    numbers where one of them is, or where none ever is 0, which counts are now and then.
    """
    ends: dict[tuple[float, float], list[int]] = {}
    for place, column in enumerate(columns):
        if column.kind in (NUMERIC, COUNT) and column.name not in wanted:
            key = answers(numbers(table, column.name, table.frame[column.name]))
            if key is not None:
                ends.setdefault(key, []).append(place)
    found = list(columns)
    for (low, high), places in ends.items():
        kinds = {columns[place].kind for place in places}
        if len(places) < BATTERY or COUNT not in kinds or (len(kinds) == 1 and low == 0):
            continue
        why = f"one of {len(places)} items from {low:g} to {high:g}, all taken alike"
        for place in places:
            name = columns[place].name
            found[place] = _as_number(table, name, columns[place].missing, why)
    return found


def _as_number(table: Table, name: str, missing: int, why: str) -> Column:
    x_N = numbers(table, name, table.frame[name])
    return _number(name, x_N[~np.isnan(x_N)], missing, "", why)
