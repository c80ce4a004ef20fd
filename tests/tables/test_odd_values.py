"""Small CSV files of odd values: every number is read as it is written, or the file is refused in one line."""

import csv
import io
import math
import re

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixwell.core.errors import MixwellError
from mixwell.tables import reading
from mixwell.tables.columns import numbers

MISSING = ("", "NA", "nan", "NaN", "?", "null", "n.a.", "-")
TEXTS = ("text", "12abc", "0x10", "1_000", "'", '"', "=1+1", "2020-01-01", "1.2.3", "1e", "e5", "--1", "1 2", "é", "½",
         "1.234,5", "Infinity5", "5%", "$5", "\u202e5", "5\u2009", "1e5.5", "(3)", "x\ny", "#", "#3", "%")
FORMS = ("{}", "+{}", " {}", "{} ", "00{}")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")

floats = st.floats(allow_nan=False).map(repr)
decimals = st.from_regex(r"\A-?[0-9]{0,25}\.[0-9]{1,25}([eE][-+]?[0-9]{1,3})?\Z")
whole = st.integers(-(10**30), 10**30).map(str) | st.sampled_from([2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1,
                                                                   10**308, 10**400]).map(str)
plain = st.one_of(floats, decimals, whole, st.integers(-9, 9).map(str))
number = st.builds(lambda form, digits: form.format(digits) if digits[0].isdigit() else digits,
                   st.sampled_from(FORMS), plain)
cell = st.one_of(number, number, number, number, st.sampled_from(MISSING), st.sampled_from(TEXTS))


@st.composite
def columns(draw):
    """Columns as text, most of numbers alone: one odd cell makes text of all."""
    rows = draw(st.integers(1, 6))
    kind = st.sampled_from([plain, number, number | st.sampled_from(MISSING), cell])
    return [draw(st.lists(draw(kind), min_size=rows, max_size=rows)) for _ in range(draw(st.integers(1, 3)))]


def written(text):
    """What a cell says: a number, NaN where it is missing, None for what is no finite number."""
    text = text.strip(" ")
    if text in MISSING:
        return math.nan
    value = float(text) if NUMBER.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


def save(path, found, delimiter):
    out = io.StringIO()
    lines = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    lines.writerow([f"name {place}" for place in range(len(found))])
    lines.writerows(zip(*found))
    path.write_text(out.getvalue(), encoding="utf-8")


@settings(derandomize=True, max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=columns(), delimiter=st.sampled_from(",;\t|"), comma=st.booleans())
def test_numbers_are_read_as_written_or_refused(found, delimiter, comma, tmp_path):
    path = tmp_path / "table.csv"
    swap = comma and delimiter != ","
    save(path, [[text.replace(".", ",") if swap and NUMBER.fullmatch(text) else text for text in column]
                for column in found], delimiter)
    try:
        table = reading.read(path)
    except MixwellError as error:
        assert "\n" not in str(error)
        return
    assert table.frame.shape == (len(found[0]), len(found))
    for name, texts in zip(table.frame.columns, found):
        expected = [written(text) for text in texts]
        try:
            read = numbers(table, name, table.frame[name])
        except MixwellError as error:
            assert "\n" not in str(error)
            assert repr(name) in str(error)
            continue
        assert None not in expected, texts
        np.testing.assert_allclose(read, expected, rtol=5e-16, atol=1e-307)  # pandas before 3 rounds the last bit
