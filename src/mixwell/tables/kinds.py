"""What kind a column is of: numbers, counts, categories, or nothing that a component describes; and why.

Pure functions of a column's name and of its values that are there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas

NUMERIC, COUNT, CATEGORY, SKIP = "numeric", "count", "category", "skip"
KINDS = (NUMERIC, COUNT, CATEGORY, SKIP)
MOST_CATEGORIES = 50
LARGEST_COUNT_MEAN = 30.0  # beyond it a Poisson variable is close to a Gaussian, which has a spread of its own
MIXED_SHARE = 0.5  # text columns of which this share are numbers are taken for numbers with slips
FARTHEST = 1e7  # standard deviations; beyond, which component is nearer drowns in rounding errors
EXACT = 2.0**53  # whole numbers up to here are floats
SENTINELS = {9.0, 88.0, 99.0, 888.0, 998.0, 999.0, 9998.0, 9999.0, 99999.0, 999999.0}  # marks of missing numbers
FAR = 3.0  # times the span of all others
BATTERY = 3  # items and more
LEAST_VARIANCE = 1e-6  # of the column's own: least variance of a component
ID_NAME = re.compile(r"^(id|ids|index|idx|key|uuid|guid|row|row.?(id|nr|no|number)|nr|no|unnamed: \d+|.*[_ ]id)$", re.I)

_TIME = r"\d\d?:\d\d(:\d\d([.,]\d+)?)?(\s*[AaPp]\.?[Mm]\.?)?"
_MONTH = r"(?:jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez)[a-zä]*\.?"
_DAY = (r"\d{4}-\d\d?-\d\d?|\d{4}/\d\d?/\d\d?|\d\d?\.\s?\d\d?\.\s?(\d{4}|\d\d)|\d\d?/\d\d?/(\d{4}|\d\d)"
        rf"|\d\d?-\d\d?-\d{{4}}|\d\d?[-. ]+{_MONTH}[-. ]*(\d{{4}}|\d\d)|{_MONTH} \d\d?(st|nd|rd|th)?,? \d{{4}}")
DATE = re.compile(rf"(({_DAY})([T ]+{_TIME})?|{_TIME})\s*(Z|[+-]\d\d:?\d\d)?", re.I)
_PART = r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?"
COMPLEX = re.compile(rf"\(?({_PART})?\s*[+-]\s*(\d+\.?\d*|\.\d+)?(e[+-]?\d+)?\s*[ij]\)?", re.I)


def foreign(there: pandas.Series) -> str:
    """What values are called that no component describes; nothing for others."""
    if there.dtype.kind in "mM":
        return "dates and times"
    first = there.iloc[0]
    if not np.isscalar(first):
        return f"values of type {type(first).__name__}"
    if there.dtype.kind == "c" or all(_looks(COMPLEX, value) for value in there):
        return "complex numbers"
    return "dates and times" if all(_looks(DATE, value) for value in there) else ""


def _looks(pattern: re.Pattern[str], value: Any) -> bool:
    if not isinstance(value, str):
        return False
    return pattern.fullmatch(value.strip()) is not None


def merged(there: pandas.Series, seen: np.ndarray) -> bool:
    """Whether values that differ became the same float."""
    if np.abs(seen).max() < EXACT or there.dtype.kind == "f":
        return False
    return there.nunique() > len(np.unique(seen))


def resolution(seen: np.ndarray) -> float:
    """The smallest step between values. A column given to 0.1 says no more than 0.1²/12 of variance: without this
    floor a component settles on rows with one and the same value and its likelihood has no limit."""
    gaps = np.diff(np.unique(seen))
    gaps = gaps[gaps > 1e-9 * (seen.max() - seen.min())]
    return float(gaps.min()) if len(gaps) else 0.0


def judge_numbers(name: str, seen: np.ndarray) -> tuple[str, str]:
    """Kind and note of a column of numbers (no missing ones among them)."""
    distinct = len(np.unique(seen))
    if distinct == 2:
        return CATEGORY, "2 different values"
    whole = (seen % 1 == 0).all()
    if whole and distinct == len(seen) and _numbers_rows(name, seen):
        return SKIP, "numbers the rows"
    if not whole:
        return NUMERIC, "numbers with fractions"
    if _counts_things(seen):
        return COUNT, f"whole numbers from {seen.min():g} that vary as counts do"
    return NUMERIC, "whole numbers that vary otherwise than counts"


def _numbers_rows(name: str, seen: np.ndarray) -> bool:
    """Whether whole numbers, all different, have the name or the even steps of row numbers."""
    if len(seen) <= 2:
        return False
    if ID_NAME.match(name.strip()):
        return True
    steps = np.diff(seen)
    return len(seen) >= 10 and bool((steps == steps[0]).all())


def _counts_things(seen: np.ndarray) -> bool:
    """Whether whole numbers may come from a mixture of Poisson components: its variance is never below the mean."""
    mean = seen.mean()
    if not 0 <= seen.min() <= 2:
        return False
    return mean <= LARGEST_COUNT_MEAN and seen.var() >= 0.8 * mean


def far_mark(seen: np.ndarray) -> str:
    """A note on a value that many files use for a missing one, and that lies far from all others; "" without any."""
    for end in (seen.min(), seen.max()):
        others = seen[seen != end]
        if abs(end) not in SENTINELS or len(others) < 2:
            continue
        span = max(float(np.ptp(others)), 1.0)
        apart = float(np.abs(others - end).min())
        if apart > FAR * span:
            times = len(seen) - len(others)
            rows = "1 row" if times == 1 else f"{times} rows"
            return f"{end:g} in {rows} lies far from all others; --missing {end:g} takes it for missing"
    return ""


def answers(x_N: np.ndarray) -> tuple[float, float] | None:
    """Least and largest value of whole numbers that an answer may be; None of any others."""
    seen = x_N[~np.isnan(x_N)]
    low, high = float(seen.min()), float(seen.max())
    if low not in (0, 1) or high > 10 or bool((seen % 1 != 0).any()):
        return None
    return low, high
