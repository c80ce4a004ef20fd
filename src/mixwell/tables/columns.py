"""Which columns of a table are used, and how: numbers, counts, categories; what is left out and why.

`choose` looks at a table once; `encode` turns any table with these columns into rows of float64, NaN where a value is
missing: numbers in standard deviations from the mean, counts as they are, categories as codes from 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mixwell.core.errors import MixwellError, suggest
from mixwell.tables.reading import Table

if TYPE_CHECKING:
    import pandas

NUMERIC, COUNT, CATEGORY, SKIP = "numeric", "count", "category", "skip"
KINDS = (NUMERIC, COUNT, CATEGORY, SKIP)
MOST_CATEGORIES = 50
LARGEST_COUNT_MEAN = 30.0  # beyond it a Poisson variable is close to a Gaussian, which has a spread of its own
MIXED_SHARE = 0.5  # text columns of which this share are numbers are taken for numbers with slips
LARGEST = float(np.finfo(np.float64).max)
LEAST_VARIANCE = 1e-6  # of the column's own: least variance of a component
ID_NAME = re.compile(r"^(id|ids|index|idx|key|uuid|guid|row|row.?(id|nr|no|number)|nr|no|unnamed: \d+|.*[_ ]id)$", re.I)

DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?)?\s*(Z|[+-]\d\d:?\d\d)?")  # ISO 8601, from text files


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


def choose(table: Table, wanted: Mapping[str, str] | None = None) -> list[Column]:
    """Every column of the table with its kind. `wanted` overrules by name: numeric, count, category or skip.

    Infinite values, a column that mixes numbers and text, and a table without a usable column raise `MixwellError`.
    """
    wanted = dict(wanted or {})
    for name, kind in wanted.items():
        if name not in table.frame.columns:
            raise MixwellError(f"there is no column {name!r}.{suggest(name, table.frame.columns)} "
                               f"The table has {', '.join(map(str, table.frame.columns))}.")
        if kind not in KINDS:
            raise MixwellError(f"column {name!r} cannot be {kind!r}; expected one of {', '.join(KINDS)}.")
    if len(table.frame) < 2:
        raise MixwellError(f"{table.name} has 1 row; expected at least 2, a mixture describes how rows differ.")
    columns = [_look(table, str(name), wanted.get(str(name))) for name in table.frame.columns]
    if all(column.kind == SKIP for column in columns):
        reasons = "; ".join(f"{c.name}: {c.note}" for c in columns[:4])
        raise MixwellError(f"{table.name} has no column to fit ({reasons}).")
    return columns


def used(columns: Iterable[Column]) -> list[Column]:
    """The columns that take part."""
    return [column for column in columns if column.kind != SKIP]


def encode(table: Table, columns: Sequence[Column], *, unknown: str = "error") -> np.ndarray:
    """Rows (N, D) of the used columns. `unknown`: "error" or "missing", what a new category is taken for."""
    if unknown not in ("error", "missing"):
        raise MixwellError(f"an unknown category is taken for 'error' or 'missing', not for {unknown!r}.")
    columns = used(columns)
    for column in columns:
        if column.name not in table.frame.columns:
            raise MixwellError(f"{table.name} lacks the column {column.name!r}."
                               f"{suggest(column.name, map(str, table.frame.columns))} The model was fitted on "
                               f"{', '.join(c.name for c in columns)}.")
    return np.stack([_encode_column(table, column, unknown) for column in columns], 1)


def _encode_column(table: Table, column: Column, unknown: str) -> np.ndarray:
    values = table.frame[column.name]
    if column.kind == CATEGORY:
        return _codes(table, column, values, unknown)
    x_N = numbers(table, column.name, values)
    if column.kind == COUNT:
        return _counts(table, column.name, x_N)
    with np.errstate(over="ignore"):
        standard_N = (x_N - column.center) / column.scale
    return np.clip(standard_N, -LARGEST, LARGEST)  # beyond all numbers there is no density either


def decode(column: Column, x_N: np.ndarray) -> np.ndarray:
    """Encoded values in the data's own units; categories as their names, None where missing."""
    if column.kind == NUMERIC:
        return x_N * column.scale + column.center
    if column.kind == COUNT:
        return x_N
    names = np.array([*column.categories, None], dtype=object)
    return names[np.where(np.isnan(x_N), len(column.categories), np.nan_to_num(x_N)).astype(int)]


def numbers(table: Table, name: str, values: pandas.Series) -> np.ndarray:
    """A column as float64, NaN where missing; text and infinities raise with their row."""
    import pandas

    found = pandas.to_numeric(values.astype(object).where(values.notna(), None), errors="coerce")
    x_N = found.to_numpy(dtype=np.float64, na_value=np.nan)
    strange = np.isnan(x_N) & values.notna().to_numpy()
    if strange.any():
        row = int(strange.argmax())
        raise MixwellError(f"column {name!r} holds {_shown(values.iloc[row])} in {table.row(row)}; expected a number.")
    if np.isinf(x_N).any():
        row = int(np.isinf(x_N).argmax())
        raise MixwellError(f"column {name!r} is infinite in {table.row(row)}; correct it, or leave it empty.")
    return x_N


def text(value: Any) -> str:
    """A category's name, the same whether it came as 2, 2.0 or '2'."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def _codes(table: Table, column: Column, values: pandas.Series, unknown: str) -> np.ndarray:
    known = {name: float(code) for code, name in enumerate(column.categories)}
    there = values.notna().to_numpy()
    codes_N = np.array([known.get(text(v), -1.0) if ok else np.nan for v, ok in zip(values, there)])
    strange = codes_N == -1
    if strange.any() and unknown == "error":
        row = int(strange.argmax())
        name = text(values.iloc[row])
        raise MixwellError(f"column {column.name!r} has the unknown category {name!r} in {table.row(row)}."
                           f"{suggest(name, known)} The model knows {', '.join(list(known)[:8])}"
                           f"{' ...' if len(known) > 8 else ''}.")
    return np.where(strange, np.nan, codes_N)


def _counts(table: Table, name: str, x_N: np.ndarray) -> np.ndarray:
    strange = (x_N < 0) | (np.nan_to_num(x_N) % 1 != 0)
    if strange.any():
        row = int(strange.argmax())
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
    if wanted is None and (values.dtype.kind in "mM" or not np.isscalar(there.iloc[0])):
        what = "dates and times" if values.dtype.kind in "mM" else f"values of type {type(there.iloc[0]).__name__}"
        return Column(name=name, kind=SKIP, note=f"{what} are not modelled", missing=missing)
    if wanted is None and all(isinstance(value, str) and DATE.fullmatch(value.strip()) for value in there):
        return Column(name=name, kind=SKIP, note="dates and times are not modelled", missing=missing)
    if wanted == CATEGORY or (wanted is None and not _numeric(table, name, values, there)):
        return _category(name, there, missing, wanted is not None)
    x_N = numbers(table, name, values)
    seen = x_N[~np.isnan(x_N)]
    kind, note = (wanted, "") if wanted else judge_numbers(name, seen)
    if seen.min() == seen.max():
        kind, note = SKIP, f"constant ({seen[0]:g} in every row)"
    if kind == CATEGORY:
        return _category(name, there, missing, True)
    if kind == COUNT:
        _counts(table, name, x_N)
    if kind != NUMERIC:
        return Column(name=name, kind=kind, note=note, missing=missing)
    return _number(name, seen, missing, note)


def _number(name: str, seen: np.ndarray, missing: int, note: str) -> Column:
    scale = float(seen.std())
    if not np.isfinite(scale) or scale <= 1e-14 * abs(float(seen.mean())):
        return Column(name=name, kind=SKIP, note="varies less than its rounding errors", missing=missing)
    return Column(name=name, kind=NUMERIC, note=note, center=float(seen.mean()), scale=scale, missing=missing,
                  floor=max(LEAST_VARIANCE, (resolution(seen) / scale) ** 2 / 12))


def resolution(seen: np.ndarray) -> float:
    """The smallest step between values. A column given to 0.1 says no more than 0.1²/12 of variance: without this
    floor a component settles on rows with one and the same value and its likelihood has no limit."""
    gaps = np.diff(np.unique(seen))
    gaps = gaps[gaps > 1e-9 * (seen.max() - seen.min())]
    return float(gaps.min()) if len(gaps) else 0.0


def judge_numbers(name: str, seen: np.ndarray) -> tuple[str, str]:
    """Kind and note of a column of numbers (no missing ones among them)."""
    whole = bool((seen % 1 == 0).all())
    distinct = len(np.unique(seen))
    if distinct == 2:
        return CATEGORY, ""
    steps = np.diff(seen)
    if whole and distinct == len(seen) and len(seen) > 2 and (ID_NAME.match(name.strip()) or (
            len(seen) >= 10 and (steps == steps[0]).all())):
        return SKIP, "numbers the rows"
    # In a mixture of Poisson components the variance is never below the mean.
    if whole and seen.min() >= 0 and seen.mean() <= LARGEST_COUNT_MEAN and seen.var() >= 0.8 * seen.mean() and (
            seen.min() <= 2):
        return COUNT, ""
    return NUMERIC, ""


def _numeric(table: Table, name: str, values: pandas.Series, there: pandas.Series) -> bool:
    """Whether a column holds numbers; one that mixes numbers and text is refused."""
    import pandas

    if pandas.api.types.is_bool_dtype(values.dtype) or isinstance(values.dtype, pandas.CategoricalDtype):
        return False
    if pandas.api.types.is_numeric_dtype(values.dtype):
        return True
    if all(isinstance(v, (bool, np.bool_)) for v in there):
        return False
    is_number = pandas.to_numeric(there.astype(object), errors="coerce").notna().to_numpy()
    if is_number.all() or not is_number.mean() >= MIXED_SHARE:
        return bool(is_number.all())
    place = int((~is_number).argmax())
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
    return Column(name=name, kind=CATEGORY, categories=names, missing=missing)


def _shown(value: Any) -> str:
    return repr(value if len(str(value)) <= 40 else f"{str(value)[:37]}...")
