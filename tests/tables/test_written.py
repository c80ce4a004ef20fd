"""Numbers as people write them, words that look like marks, and marks that stand for missing values."""

import numpy as np
import pandas as pd
import pytest

from mixwell.core.errors import MixwellError
from mixwell.tables import bulk, cells
from mixwell.tables.columns import choose
from mixwell.tables.missing import Form
from mixwell.tables.numerals import COMMA, POINT, core, decided, tally, value
from mixwell.tables.reading import of, read


def table(tmp_path, text, name="t.csv", encoding="utf-8", **said):
    """The table of a file that holds this text."""
    (tmp_path / name).write_bytes(text.encode(encoding))
    return read(tmp_path / name, Form(**said))


@pytest.mark.parametrize(("text", "decimal", "number"), [
    ("1.234,56", COMMA, 1234.56), ("27.317.560,5", COMMA, 27317560.5), ("1.234", COMMA, 1234), ("12,5", COMMA, 12.5),
    ("1.234", POINT, 1.234), ("12,345.67", POINT, 12345.67), ("1,005,000", POINT, 1005000), (" 7 ", POINT, 7),
    ("$27,317.56", POINT, 27317.56), ("1.234,50 €", COMMA, 1234.5), ("EUR 12", POINT, 12), ("26.2%", POINT, 26.2),
    ("26,2 %", COMMA, 26.2), ("(8.02)", POINT, -8.02), ("($1,200)", POINT, -1200), ("\u22123.5", POINT, -3.5),
    ("\u20133", POINT, -3), ("1.5D+03", POINT, 1500), ("2d-2", POINT, 0.02), ("1e3", POINT, 1000), (".5", POINT, 0.5),
    ("5.", POINT, 5), ("+4", POINT, 4), ("1'234.5", POINT, 1234.5), ("1’234’567", POINT, 1234567),
    ("1 234 567,5", COMMA, 1234567.5), ("1\u00a0234", POINT, 1234), ("-inf", POINT, -np.inf),
])
def test_a_number_is_read_as_it_is_meant(text, decimal, number):
    assert value(text, decimal) == number


@pytest.mark.parametrize("text", ["1,5", "1.2.3", "12,34,567", "abc", "", "-", "12abc", "0x10", "1_000", "1,2345",
                                  "1 2", "0,123", "12.", "1/2"])
def test_what_is_no_number_with_a_point_is_none(text):
    assert np.isnan(value(text, POINT)) == (text != "12.")


@pytest.mark.parametrize(("texts", "decimal"), [
    (["1.234,5", "950"], COMMA), (["1,234.5", "950"], POINT), (["1.234.567"], COMMA), (["1,234,567"], POINT),
    (["12,5"], COMMA), (["12.5"], POINT), (["0.123"], POINT), (["1234.567"], POINT), (["1.234", "2.345"], ""),
    (["1,234"], ""), (["7", "8"], ""), (["1.5", "2,5"], ""),
])
def test_a_column_settles_its_decimal_sign_where_it_can(texts, decimal):
    assert decided(tally(texts)) == decimal


def test_a_file_settles_what_a_column_leaves_open(tmp_path):
    found = table(tmp_path, "town;area\n950;54,44\n1.234;53,17\n12.500;56,08\n")
    assert found.frame["town"].tolist() == [950, 1234, 12500] and found.frame["area"].tolist() == [54.44, 53.17, 56.08]
    assert found.readings["town"].notes[0] == "1.234 is taken for 1234; --decimal '.' takes it for 1.234"
    points = table(tmp_path, "town;area\n950;54.44\n1.234;53.17\n")
    assert points.frame["town"].tolist() == [950, 1.234]
    said = table(tmp_path, "town;area\n950;54,44\n1.234;53,17\n", decimal=".")
    assert said.frame["town"].tolist() == [950, 1.234]


@pytest.mark.parametrize(("text", "numbers"), [
    ("a;b\n950;1\n1.234;2\n", [950, 1234]),  # 950 stands beside it, no 1234, and semicolons
    ("a;b\n1.234;1\n2.345;2\n", [1.234, 2.345]), ("a,b\n950,1\n1.234,2\n", [950, 1.234]),
    ("a;b\n1,234;1\n2,345;2\n", [1.234, 2.345]), ('a,b\n"1,234",1\n"2,345",2\n', [1234, 2345]),
    ("a\tb\n1,234\t1\n2,345\t2\n", [1234, 2345]),
])
def test_where_nothing_settles_it_the_delimiter_does(tmp_path, text, numbers):
    found = table(tmp_path, text)
    assert found.frame["a"].tolist() == numbers and "is taken for" in found.readings["a"].notes[0]


def test_thousands_that_are_named_settle_the_decimal_sign(tmp_path):
    text = "a;b\n1.234;1\n2.345;2\n"
    assert table(tmp_path, text, thousands=".").frame["a"].tolist() == [1234, 2345]
    assert table(tmp_path, text, thousands=",").frame["a"].tolist() == [1.234, 2.345]


@pytest.mark.parametrize(("text", "numbers"), [
    ("price,share\n$27317.56,26.2%\n$27196.96,32.5%\n", {"price": [27317.56, 27196.96], "share": [26.2, 32.5]}),
    ("preis;flaeche\n27.317,56;26,22\n27.196,96;32,50\n", {"preis": [27317.56, 27196.96], "flaeche": [26.22, 32.5]}),
    ('a,b\n"46,23","56,16"\n"49,68","46,88"\n', {"a": [46.23, 49.68], "b": [56.16, 46.88]}),
    ('"x";"y"\n"27,32";"26,22"\n"27,20";"32,50"\n', {"x": [27.32, 27.2], "y": [26.22, 32.5]}),
    ('city,price,area\nc1,"27,317.56",26.22\nc0,"9,416.74",49.36\n', {"price": [27317.56, 9416.74]}),
    ('rev,x\n"1,005,000",47.75\n"1,003,000",59.08\n', {"rev": [1005000, 1003000], "x": [47.75, 59.08]}),
    ("27.317,56;26,22\n27.196,96;32,50\n", {"column 1": [27317.56, 27196.96], "column 2": [26.22, 32.5]}),
])
def test_files_that_were_read_wrongly(tmp_path, text, numbers):
    frame = table(tmp_path, text).frame
    assert {name: frame[name].tolist() for name in numbers} == numbers


def test_signs_beside_numbers_are_told(tmp_path):
    found = table(tmp_path, "price,share,code\n$27.5,26%,12E5\n$28.5,32%,13E5\n")
    assert found.readings["price"].notes == ("read without $",) and found.readings["share"].notes == ("read without %",)
    assert found.readings["code"].notes == ("12E5 is taken for 1200000",)
    assert found.readings["price"].examples == ("$27.5", "$28.5")


def test_codes_stay_codes(tmp_path):
    frame = table(tmp_path, "zip,x\n01234,1\n80331,2\n").frame
    assert frame["zip"].tolist() == ["01234", "80331"] and frame["x"].tolist() == [1, 2]
    text = "code,x\n12E5,1\n13E5,2\n12E5,3\n"
    (tmp_path / "t.csv").write_text(text)
    assert read(tmp_path / "t.csv", written=["code"]).frame["code"].tolist() == ["12E5", "13E5", "12E5"]


def test_one_sign_among_others_is_refused_not_guessed(tmp_path):
    found = table(tmp_path, 'a,b\n1.5,1\n2.25,2\n"1,5",3\n')
    with pytest.raises(MixwellError, match=r"'a' mixes numbers and text: '1,5' in row 3"):
        choose(found)


def test_marks_among_numbers_are_missing(tmp_path):
    marks = [".", "-", "?", "NA", "none", "n/a", "#N/A", "NULL", "–", ""]
    lines = [f"{mark},{i}.5" for i, mark in enumerate(marks)] + [f"{i}.25,{i}.5" for i in range(12)]
    found = table(tmp_path, "x,y\n" + "\n".join(lines) + "\n")
    assert found.frame["x"].isna().tolist() == [True] * 10 + [False] * 12
    assert found.readings["x"].missing == dict.fromkeys(marks, 1) and found.readings["y"].missing == {}


def test_none_and_na_are_words_among_words(tmp_path):
    found = table(tmp_path, "symptom,country,x\nnone,NA,0.1\nmild,DE,0.2\nsevere,NA,0.3\n?,FR,0.4\n")
    assert found.frame["symptom"].tolist()[:3] == ["none", "mild", "severe"] and found.frame["symptom"].isna()[3]
    assert found.frame["country"].tolist() == ["NA", "DE", "NA", "FR"]
    assert found.readings["country"].notes == ("'NA' is taken for a word; --missing NA takes it for missing",)
    said = table(tmp_path, "country,x\nNA,0.1\nDE,0.2\n", missing=("NA",))
    assert said.frame["country"].isna().tolist() == [True, False] and said.readings["country"].missing == {"NA": 1}


def test_a_mark_among_the_files_numbers_is_one_among_its_words(tmp_path):
    found = table(tmp_path, "country,x\nNA,0.1\nDE,NA\nFR,0.3\n")
    assert found.frame["country"].isna().tolist() == [True, False, False]


def test_r_leaves_its_marks_without_quotes(tmp_path):
    text = '"country","ok"\nNA,TRUE\n"DE",FALSE\n"FR",TRUE\n'
    assert table(tmp_path, text).frame["country"].isna().tolist() == [True, False, False]
    quoted = text.replace("NA", '"NA"')
    assert table(tmp_path, quoted).frame["country"].tolist() == ["NA", "DE", "FR"]


def test_marks_that_are_named_are_missing_everywhere(tmp_path):
    found = table(tmp_path, "x,y,z\n-999,1.5,a\n2,9999,-999\n3,2.5,b\n", missing=("-999", "9999"))
    assert found.frame.isna().to_numpy().sum(0).tolist() == [1, 1, 1]
    assert found.readings["x"].missing == {"-999": 1}


def test_text_in_memory_is_read_as_in_a_file():
    found = of(pd.DataFrame({"a": ["1.234,5", "2,5", None], "b": ["none", "x", "y"], "c": [1, 2, 3]}))
    assert found.frame["a"].tolist()[:2] == [1234.5, 2.5] and found.frame["b"].tolist() == ["none", "x", "y"]
    assert found.frame["c"].tolist() == [1, 2, 3] and found.frame["a"].isna()[2]


def test_the_short_way_for_large_tables_gives_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=300).round(3)
    columns = {
        "plain": numbers.astype(str), "whole": rng.integers(-5, 9, 300).astype(str),
        "codes": ["007"] * 150 + ["12"] * 150, "empty": np.where(np.arange(300) % 9, "4", ""),
        "holes": np.where(np.arange(300) % 7, numbers.astype(str), "NA"),
        "signs": [f"${abs(n)}" for n in numbers], "comma": [str(n).replace(".", ",") for n in numbers],
        "words": ["a", "b", "NA"] * 100, "open": ["1.234", "5.678"] * 150, "late": ["1"] * 299 + ["2.5"],
        "slip": ["1.5"] * 299 + ["x"], "huge": [str(2**60 + i) for i in range(300)], "power": ["1e3", "2.5"] * 150,
        "beyond": ["9" * 400, "1"] * 150}
    frame = pd.DataFrame(columns)
    slow = of(frame)
    monkeypatch.setattr(cells, "LARGE", 0)
    fast = of(frame)
    pd.testing.assert_frame_equal(fast.frame, slow.frame)
    for name in columns:
        assert fast.readings[name].missing == slow.readings[name].missing, name
        assert fast.readings[name].examples == slow.readings[name].examples, name
    assert bulk.plain_numbers(frame["plain"], Form()) is not None, "the short way was taken"
    assert bulk.plain_numbers(frame["plain"], Form(decimal=",")) is None


def test_cores_lose_nothing_but_dress():
    assert core(" ( $1 234.50 ) ") == "-1234.50" and core("12 34") == "12 34" and core("CHFX") == "CHFX"


def test_a_model_reads_new_rows_as_it_read_its_own(tmp_path):
    from mixwell import tables

    rng = np.random.default_rng(0)
    size = rng.integers(1000, 9000, 80)
    grouped = [f"{n:,}".replace(",", ".") for n in size]
    areas = [f"{n / 100:.2f}".replace(".", ",") for n in size]
    lines = [f"{a};{b};{'NA' if n % 2 else 'DE'}" for a, b, n in zip(grouped, areas, size)]
    (tmp_path / "old.csv").write_text("size;area;land\n" + "\n".join(lines) + "\n")
    fitted = tables.fit(tmp_path / "old.csv", components=[1], family="diag", starts=1)
    (tmp_path / "new.csv").write_text("size;area;land\n1.234;NA;NA\n5.678;NA;DE\n")
    x_ND = fitted.encode(tmp_path / "new.csv")
    column = fitted.used[0]
    np.testing.assert_allclose(x_ND[:, 0] * column.scale + column.center, [1234, 5678])
    assert not np.isnan(x_ND[:, 2]).any(), "NA is a country there"


def test_a_decimal_sign_that_other_columns_do_not_have_is_told(tmp_path):
    (tmp_path / "a.csv").write_text('length,visits\n1.5,3\n2.5,"1,5"\n3.25,4\n')
    columns = {column.name: column for column in choose(read(tmp_path / "a.csv"))}
    assert "its decimal sign is ',', that of other columns '.'" in columns["visits"].note
    assert "decimal sign" not in columns["length"].note
