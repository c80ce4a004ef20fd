"""Columns of plain numbers, converted by Arrow without looking at each value in Python, for large tables.

What is not plain (thousands, currencies, ambiguous signs, leading zeros, words) is left to `cells`; both give the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mixwell.tables.missing import AMONG_NUMBERS, Form
from mixwell.tables.numerals import COMMA, POINT, Tally, tally

if TYPE_CHECKING:
    import pandas

FEW, SAMPLE = 30, 5000  # values that are looked at; the many where the few leave the decimal sign open
EXACT = 2**53  # whole numbers up to here are floats
CODES = r"^[+-]?0\d"  # leading zeros
LETTERS = r"[a-zA-Z]"  # powers, infinities
MARKS = sorted(AMONG_NUMBERS | {mark.upper() for mark in AMONG_NUMBERS} | {mark.title() for mark in AMONG_NUMBERS})


def plain_numbers(values: pandas.Series, form: Form) -> tuple[np.ndarray, dict[str, int], Tally] | None:
    """A column of text as numbers, its marks of missing values, and what a sample says; None for any other."""
    import pyarrow.compute as compute
    from pyarrow import ArrowInvalid

    if form.decimal == COMMA or form.thousands == POINT:
        return None
    text = compute.utf8_trim_whitespace(_arrow(values))
    marks = _value_set(form)
    absent = compute.is_in(text, value_set=marks)
    there = compute.if_else(absent, None, text)
    sample = _sampled(there)
    whole = not sample.point
    undecided = sample.either and whole
    if sample.other or sample.comma or undecided:
        return None
    if _has(there, CODES if whole else LETTERS):
        return None
    try:
        numbers = there.cast("int64" if whole else "float64")
    except ArrowInvalid:
        return None
    values = _values(numbers, whole)
    if whole and numbers.null_count and np.nanmax(np.abs(values)) >= EXACT:
        return None
    return values, _counted(text, absent), sample


def _sampled(there: Any) -> Tally:
    """What the first values say."""
    values = there.drop_null()
    few = values.slice(0, FEW).to_pylist()
    found = tally(few)
    if found.point or found.comma or found.other:
        return found
    more = values.slice(0, SAMPLE).to_pylist()
    return tally(more)


def _arrow(values: pandas.Series) -> Any:
    import pyarrow

    found = pyarrow.array(values, type=pyarrow.string(), from_pandas=True)
    return found.combine_chunks() if isinstance(found, pyarrow.ChunkedArray) else found


def _value_set(form: Form) -> Any:
    import pyarrow

    return pyarrow.array([*MARKS, *form.missing], type=pyarrow.string())


def _has(text: Any, pattern: str) -> bool:
    import pyarrow.compute as compute

    found = compute.match_substring_regex(text, pattern)
    return bool(compute.any(found).as_py())


def _values(numbers: Any, whole: bool) -> np.ndarray:
    """Integers where all are whole, there, and told apart by floats; else floats."""
    if whole and not numbers.null_count:
        return numbers.to_numpy(zero_copy_only=False)
    return numbers.cast("float64").to_numpy(zero_copy_only=False)


def _counted(text: Any, absent: Any) -> dict[str, int]:
    import pyarrow.compute as compute

    found = compute.value_counts(text.filter(absent))
    return {pair["values"]: pair["counts"] for pair in found.to_pylist()}
