"""Tables from files: delimiters, decimals, names, folders; and what is refused, in one line."""

import errno
import gzip
import sys

import numpy as np
import pandas as pd
import pytest

from mixwell.core.errors import MixwellError
from mixwell.tables import reading as tables
from mixwell.tables.dialect import sniff

FRAME = pd.DataFrame({"a": [1.5, 2.25, -3.0], "b": ["x", "y, z", None], "c": [1, 2, 3]})


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path, delimiter):
    FRAME.to_csv(tmp_path / "t.csv", sep=delimiter, index=False)
    pd.testing.assert_frame_equal(tables.read(tmp_path / "t.csv").frame, FRAME)


def test_one_column_and_quoted_delimiters_keep_the_comma():
    assert sniff('a,b\n"1;2",3\n"4;5",6\n') == "," and sniff("a\n1\n2\n") == ","


def test_decimal_commas_missing_marks_and_byte_order_mark(tmp_path):
    (tmp_path / "t.csv").write_text("a;b\n1,5;?\n2,25;4\n", encoding="utf-8-sig")
    frame = tables.read(tmp_path / "t.csv").frame
    assert list(frame.columns) == ["a", "b"] and frame["a"].tolist() == [1.5, 2.25]
    assert np.isnan(frame["b"][0]) and frame["b"][1] == 4


def test_a_file_without_names_gets_some(tmp_path):
    (tmp_path / "t.csv").write_text("1,2.5\n3,4.5\n")
    frame = tables.read(tmp_path / "t.csv").frame
    assert list(frame.columns) == ["column 1", "column 2"] and frame["column 1"].tolist() == [1, 3]


def test_parquet_gzip_and_a_folder_with_rows_named_by_file(tmp_path):
    tables.write_parquet(tmp_path / "a.parquet", FRAME)
    with gzip.open(tmp_path / "b.csv.gz", "wt") as file:
        FRAME.to_csv(file, index=False)
    (tmp_path / "readme.md").write_text("no table")
    table = tables.read(tmp_path)
    assert len(table.frame) == 6 and table.frame["a"].tolist() == [*FRAME["a"], *FRAME["a"]]
    assert table.row(1) == "row 2 of a.parquet" and table.row(3) == "row 1 of b.csv.gz"
    assert tables.read(tmp_path / "a.parquet").row(1) == "row 2"


def test_tables_from_memory():
    assert list(tables.of(np.eye(3)).frame.columns) == ["column 1", "column 2", "column 3"]
    assert tables.of({"a": [1, 2]}).frame["a"].tolist() == [1, 2]
    polars = pytest.importorskip("polars")
    assert tables.of(polars.DataFrame({"a": [1, 2]})).frame["a"].tolist() == [1, 2]
    with pytest.raises(MixwellError, match="two dimensions, got an array of 3"):
        tables.of(np.zeros((2, 2, 2)))


@pytest.mark.parametrize(("name", "content", "words"), [
    ("t.csv", b"", "is empty"), ("t.csv", b"\n\n", "is empty"), ("t.csv", b"a,b\n", "no rows; expected at least one"),
    ("t.csv", b"a,b, a\n1,2,3\n", "has two columns named 'a'; rename one"),
    ("t.csv", b"\n\na;b;b\n1;2;3\n", "has two columns named 'b'; rename one"),
    ("t.csv", b"a,b,c\n1,2,3\n\n4,5,\n6,7\n", "has 2 of 3 fields in row 3; expected all"),
    ("t.csv", b"a,b\n1,2,3\n4,5,6\n", "more fields than column names"),
    ("t.csv", b"1,2\n3,4\n5\n", "has 1 of 2 fields in row 3; expected all"),
    ("t.csv.gz", gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-9], "not a proper table"),
    ("t.csv", b"a,b\n1,2\n1,2,3,4\n", "not a proper table: .*line 3"),
    ("t.csv", b"a,b\n\x81\xfe,1\n", "neither UTF-8 nor"),
    ("t.parquet", b"PAR1 nonsense", "cannot be read as Parquet"), ("t.docx", b"x", "expected a table that ends as"),
    ("t.csv.gz", b"plain", "not a proper table"),
])
def test_bad_files_are_refused_by_name(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MixwellError, match=words) as caught:
        tables.read(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_delimiters_at_the_end_of_rows_add_nothing(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2,\n4,5,\n")
    assert tables.read(tmp_path / "t.csv").frame.to_dict("list") == {"a": [1, 4], "b": [2, 5]}


def test_empty_fields_and_blank_lines_are_no_short_rows(tmp_path):
    (tmp_path / "t.csv").write_text("a,,,a.1\n1,2,3,\n\n  \n,,,\n4,5,6,7\n")
    frame = tables.read(tmp_path / "t.csv").frame
    assert frame["a.1"].isna().tolist() == [True, True, False] and len(frame.columns) == 4


def test_what_the_system_will_not_read_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")

    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with pytest.raises(MixwellError, match=r"n.csv cannot be read \(File name too long\)"):
        tables.read(tmp_path / ("n" * 300 + ".csv"))
    monkeypatch.setattr("builtins.open", refuse)
    for path in (tmp_path / "t.csv", tmp_path):
        with pytest.raises(MixwellError, match=r"t.csv cannot be read \(Permission denied\)"):
            tables.read(path)


def test_missing_files_and_unlike_folders_are_refused(tmp_path):
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    with pytest.raises(MixwellError, match=r"Did you mean 'data.csv'"):
        tables.read(tmp_path / "date.csv")
    (tmp_path / "other.csv").write_text("a,c\n1,2\n")
    with pytest.raises(MixwellError, match=r"other.csv lacks the column 'b', which data.csv has"):
        tables.read(tmp_path)
    (tmp_path / "other.csv").write_text("a,b,c\n1,2,3\n")
    with pytest.raises(MixwellError, match=r"other.csv has the column 'c', which data.csv lacks"):
        tables.read(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MixwellError, match=r"holds no \.csv or \.parquet file"):
        tables.read(tmp_path / "empty")


def test_without_pandas_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MixwellError, match=r"tables need pandas, .* pip install 'mixwell\[tables\]'"):
        tables.read("t.csv")
