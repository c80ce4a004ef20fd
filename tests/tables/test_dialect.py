"""How a text file writes a table: delimiters, lines above it, names, row names; files that are packed or foreign."""

import bz2
import io
import lzma
import zipfile

import numpy as np
import pandas as pd
import pytest

from mixwell.core.errors import MixwellError
from mixwell.tables import reading as tables
from mixwell.tables.columns import choose
from mixwell.tables.dialect import sniff
from mixwell.tables.missing import Form

NUMBERS = [[27.32, 26.22], [27.2, 32.5], [9.42, 49.36], [30.6, 32.0]]


def table(tmp_path, text, name="t.csv", encoding="utf-8", **said):
    """The table of a file that holds this text."""
    (tmp_path / name).write_bytes(text.encode(encoding))
    return tables.read(tmp_path / name, Form(**said))


BODY = ["27.32 26.22", "27.20 32.50", "9.42 49.36", "30.60 32.00"]


@pytest.mark.parametrize(("text", "names", "note"), [
    ("x y\n" + "\n".join(BODY), ["x", "y"], "fields are separated by spaces"),
    ("\n".join(f"  {line.replace(' ', '   ')} " for line in BODY), ["column 1", "column 2"], "no line names"),
    ("x\ty\n" + "\n".join(f"{i + 1}\t{line}".replace(" ", "\t") for i, line in enumerate(BODY)), ["row", "x", "y"],
     "as R writes it"),
    ('"x" "y"\n' + "\n".join(f'"car {i}" {line}' for i, line in enumerate(BODY)), ["row", "x", "y"], "as R writes it"),
    ("Export from LIMS\n# generated 2024-01-01\nx,y\n" + "\n".join(BODY).replace(" ", ","), ["x", "y"],
     "2 lines above the table left out ('Export from LIMS')"),
    ("Report;;\n\nx;y;z\n" + "\n".join(f"{line};7" for line in BODY).replace(" ", ";"), ["x", "y", "z"],
     "1 line above the table"),
    ("sep=;\nx;y\n" + "\n".join(BODY).replace(" ", ";"), ["x", "y"], "1 line above"),
    ("# made by hand\n" + "\n".join(BODY).replace(" ", ","), ["column 1", "column 2"], "no line names the columns"),
])
def test_the_table_is_found_in_its_file(tmp_path, text, names, note):
    found = table(tmp_path, text, "t.txt")
    assert list(found.frame.columns) == names and any(note in told for told in found.notes), found.notes
    shown = found.frame[[name for name in names if name not in ("row", "z")]]
    np.testing.assert_array_equal(shown.to_numpy(), NUMBERS)


def test_a_file_without_names_and_with_words_keeps_its_first_row(tmp_path):
    lines = [f"{5 + i % 3}.1,{3 + i % 2}.5,{['setosa', 'virginica'][i % 2]}" for i in range(150)]
    found = table(tmp_path, "\n".join(lines) + "\n\n", "iris.data")
    assert len(found.frame) == 150 and list(found.frame.columns) == ["column 1", "column 2", "column 3"]
    words = table(tmp_path, "red,round\nblue,square\nred,square\nblue,round\n")
    assert len(words.frame) == 4 and list(words.frame.columns) == ["column 1", "column 2"]


def test_names_over_numbers_are_names_even_beside_years(tmp_path):
    found = table(tmp_path, "land,2019,2020\nDE,1.5,2\nFR,2.5,3\n")
    assert list(found.frame.columns) == ["column 1", "column 2", "column 3"] and len(found.frame) == 3
    said = table(tmp_path, "land,2019,2020\nDE,1.5,2\nFR,2.5,3\n", header=True)
    assert list(said.frame.columns) == ["land", "2019", "2020"] and said.frame["2019"].tolist() == [1.5, 2.5]
    assert list(table(tmp_path, "colour,form\nred,round\nblue,square\n").frame.columns) == ["colour", "form"]


def test_what_is_said_takes_the_place_of_what_is_found(tmp_path):
    text = "one two\nthree four\nx,y\n1,2\n3,4\n"
    assert table(tmp_path, text, skip_rows=3, header=False).frame.to_numpy().tolist() == [[1, 2], [3, 4]]
    assert list(table(tmp_path, "a:b\n1:2\n3:4\n", delimiter=":").frame.columns) == ["a", "b"]
    assert len(table(tmp_path, "x,y\n1,2\n", header=False).frame) == 2


def test_fields_that_hold_decimal_commas_do_not_split_at_them():
    assert sniff("27.317,56;26,22\n27.196,96;32,50\n") == ";" and sniff("1,5\t2,5\n3,5\t4,5\n") == "\t"
    assert sniff("name\nNew York\nLos Angeles\n") == ","


def test_lines_inside_quotes_are_counted(tmp_path):
    found = table(tmp_path, 'title\n"two\nlines",y\n1,2\n3,4\n')
    assert list(found.frame.columns) == ["two\nlines", "y"] and found.frame["y"].tolist() == [2, 4]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"])
def test_text_in_any_encoding_is_read(tmp_path, encoding):
    found = table(tmp_path, "größe,stadt\n1.5,Köln\n2.5,Füssen\n", encoding=encoding)
    assert found.frame["stadt"].tolist() == ["Köln", "Füssen"] and "größe" in found.frame.columns
    assert any("text in" in note for note in found.notes) == (encoding not in ("utf-8", "utf-8-sig"))


def test_an_encoding_that_is_named_is_used_or_refused(tmp_path):
    text = "stadt,x\nКиев,1\nМинск,2\n"
    assert table(tmp_path, text, encoding="koi8-r").frame["stadt"][0] != "Киев"
    (tmp_path / "k.csv").write_bytes(text.encode("koi8-r"))
    assert tables.read(tmp_path / "k.csv", Form(encoding="koi8-r")).frame["stadt"].tolist() == ["Киев", "Минск"]
    with pytest.raises(MixwellError, match="unknown encoding 'utf-9'"):
        tables.read(tmp_path / "k.csv", Form(encoding="utf-9"))
    with pytest.raises(MixwellError, match="is no text in ascii"):
        tables.read(tmp_path / "k.csv", Form(encoding="ascii"))


def test_latin_1_after_a_long_start_is_still_found(tmp_path):
    lines = ["x,stadt", *(f"{i}.5,Bonn" for i in range(20_000)), "1.5,Köln"]
    found = table(tmp_path, "\n".join(lines), encoding="latin-1")
    assert found.frame["stadt"].iloc[-1] == "Köln"


def packed(kind, text):
    data = text.encode()
    if kind == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("inner.csv", data)
        return buffer.getvalue()
    return {"bz2": bz2.compress, "xz": lzma.compress}[kind](data)


@pytest.mark.parametrize("kind", ["zip", "bz2", "xz"])
def test_packed_tables_are_read(tmp_path, kind):
    name = "t.zip" if kind == "zip" else f"t.csv.{kind}"
    (tmp_path / name).write_bytes(packed(kind, "a;b\n1,5;x\n2,5;y\n"))
    assert tables.read(tmp_path / name).frame["a"].tolist() == [1.5, 2.5]


def test_other_forms_are_read(tmp_path):
    frame = pd.DataFrame({"a": [1.5, 2.5, 3.5], "b": ["x", "none", "y"]})
    frame.to_feather(tmp_path / "t.feather")
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    for name in ("t.feather", "t.jsonl"):
        found = tables.read(tmp_path / name).frame
        assert found["a"].tolist() == [1.5, 2.5, 3.5] and found["b"].tolist() == ["x", "none", "y"]


def test_workbooks_are_read_or_what_they_need_is_named(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["a", "b"], [1.5, "none"], [2.5, "x"]):
        book.active.append(row)
    book.create_sheet("more")
    book.save(tmp_path / "t.xlsx")
    found = tables.read(tmp_path / "t.xlsx")
    assert found.frame["a"].tolist() == [1.5, 2.5] and found.frame["b"].tolist() == ["none", "x"]
    assert found.notes == ("sheet 'Sheet', the first of 2",)


def test_a_workbook_without_openpyxl_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    with pytest.raises(MixwellError, match="is an Excel workbook, which needs openpyxl: pip install openpyxl"):
        tables.read(tmp_path / "t.xlsx")


@pytest.mark.parametrize(("name", "content", "words"), [
    ("t.sav", b"x", "is an SPSS file, which is not read; save it as CSV"), ("t.json", b"[]", "is a JSON document"),
    ("t.rds", b"x", "is an R object"), ("t.pkl", b"x", "a pickle, which could run code"),
    ("t.csv", b"PK\x03\x04abc", "is a zip archive or an Excel workbook, not text"),
    ("t.csv", b"PAR1abc", "is a Parquet file, not text"), ("t.csv", b"\x1f\x8babc", "is gzip-packed, not text"),
    ("t.zip", b"nonsense", "is no zip archive"), ("t.feather", b"nonsense", "cannot be read as Arrow"),
    ("t.jsonl", b"{nonsense", "cannot be read as JSON lines"), ("t", b"a,b\n", "expected a table that ends as"),
])
def test_foreign_files_are_refused_by_their_right_name(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MixwellError, match=words) as caught:
        tables.read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_an_archive_of_two_tables_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a.csv", "a\n1\n")
        archive.writestr("b.csv", "a\n1\n")
    with pytest.raises(MixwellError, match="holds 2 files; expected one table"):
        tables.read(tmp_path / "t.zip")


def test_standard_input_is_a_table(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a;b\n1,5;2\n2,5;3\n")))
    found = tables.read("-")
    assert found.name == "stdin" and found.frame["a"].tolist() == [1.5, 2.5]


def test_a_folder_reads_a_column_as_one(tmp_path):
    (tmp_path / "a.csv").write_text("x;y\n950;1\n870;2\n")
    (tmp_path / "b.csv").write_text("x;y\n1.234;3\n12.500;4,5\n")
    frame = tables.read(tmp_path).frame
    assert frame["x"].tolist() == [950, 870, 1234, 12500] and frame["y"].tolist() == [1, 2, 3, 4.5]


@pytest.mark.parametrize("last", ["Total,10,2.5", "Summe,10,0", "mean,2.5,0"])
def test_a_row_of_totals_is_refused(tmp_path, last):
    rows = "".join(f"{town},{n},{n / 4}\n" for town, n in zip("abcd", (1, 2, 3, 4)))
    with pytest.raises(MixwellError, match=r"row 5 of t \('\w+'\) holds the total or the mean of 'n' above it"):
        table(tmp_path, f"town,n,m\n{rows}{last}\n")
    assert len(table(tmp_path, f"town,n,m\n{rows}Total,77,9\n").frame) == 5, "no total of anything"


def test_values_that_look_like_marks_are_told(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(20, 5, 60).round(2), rng.normal(30, 5, 60).round(2)
    x[:3], y[5] = -999, 9999
    columns = choose(tables.of({"x": x, "y": y, "z": np.where(np.arange(60) < 2, 99, 50 + np.arange(60))}))
    assert columns[0].note == "-999 in 3 rows lies far from all others; --missing -999 takes it for missing"
    assert columns[1].note.startswith("9999 in 1 row lies far") and columns[2].note == "", "99 lies among the others"


@pytest.mark.parametrize("dates", [
    ["03.04.2021", "17.11.2022"], ["3/4/2021", "11/17/22"], ["2021/03/04", "2022/1/1"], ["4 Mar 2021", "17-Nov-2022"],
    ["Mar 4, 2021", "November 17, 2022"], ["08:30", "12:15:30"], ["2021-03-04 08:30", "2021-03-05T09:00:00Z"],
    ["03.04.21 08:30", "5. 6. 2022"]])
def test_dates_of_many_forms_are_left_out(dates):
    (column, _) = choose(tables.of({"when": dates * 10, "x": np.arange(20) ** 2}))
    assert column.kind == "skip" and column.note == "dates and times are not modelled"


@pytest.mark.parametrize("values", [["1+2j", "3-4i", "2.5j"] * 10, [1 + 2j, 3j, 4 + 0j] * 10])
def test_complex_numbers_are_left_out(values):
    if isinstance(values[0], str):
        values[2::3] = ["-1.5e3+2j"] * 10
    (column, _) = choose(tables.of({"z": values, "x": np.arange(30) ** 2}))
    assert column.kind == "skip" and column.note == "complex numbers are not modelled"


def test_the_items_of_a_battery_are_taken_alike():
    rng = np.random.default_rng(0)
    agree = rng.binomial(4, 0.5, (300, 4)) + 1
    skewed = np.where(rng.random(300) < 0.8, 1, 5)
    skewed[:5] = [2, 3, 4, 5, 1]
    frame = pd.DataFrame(agree, columns=["q1", "q2", "q3", "q4"]).assign(q5=skewed, age=rng.integers(20, 60, 300))
    columns = {column.name: column for column in choose(tables.of(frame))}
    assert [columns[f"q{i}"].kind for i in range(1, 6)] == ["numeric"] * 5
    assert columns["q5"].why == "one of 5 items from 1 to 5, all taken alike" and "items" not in columns["age"].why
    asked = {column.name: column.kind for column in choose(tables.of(frame), {"q5": "category"})}
    assert asked["q5"] == "category" and asked["q1"] == "numeric"
    visits = rng.poisson(1.2, 300).clip(max=5)
    counts = pd.DataFrame({name: rng.permutation(visits) for name in "abc"})
    assert {column.kind for column in choose(tables.of(counts))} == {"count"}, "they all vary as counts do"


def test_decimal_commas_in_a_single_column_are_told_and_taken(tmp_path):
    text = "rate 0\n0,0\n1,5\n2,25\n3,1\n"
    found = table(tmp_path, text)
    assert found.frame.shape == (4, 2)
    assert "every line may be one number with a decimal comma: then pass --decimal ," in found.notes
    said = table(tmp_path, text, decimal=",")
    assert list(said.frame.columns) == ["rate 0"] and said.frame["rate 0"].tolist() == [0.0, 1.5, 2.25, 3.1]
    pair = table(tmp_path, "x,y\n0,0\n1,5\n2,25\n3,1\n")
    assert not [note for note in pair.notes if "decimal comma" in note]
