"""Tables that are odd, wide or broken: refused in one line, or taken as they are."""

import numpy as np
import pandas as pd
import pytest

from mixwell import tables
from mixwell.core.errors import MixwellError
from mixwell.tables import search
from mixwell.tables.candidates import Candidate
from mixwell.tables.columns import choose, encode, used
from mixwell.tables.kinds import SKIP
from mixwell.tables.reading import of, read
from tests.mutations import none_ends_badly
from tests.mutations.tables import Tables, frame


@pytest.fixture(scope="module")
def mutants(tmp_path_factory):
    """Their fits end early: what is wrong with a table shows in the first steps, of which thirty are many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "MOST_STEPS", 30)
        yield Tables(tmp_path_factory.mktemp("tables"))


@pytest.mark.parametrize("first", range(0, 100, 50))
def test_no_mutant_of_a_table_ends_badly(mutants, first):
    none_ends_badly(mutants.try_one, first)


def test_the_names_of_an_index_are_kept():
    made = frame()
    indexed = made.set_index(["town", "height"])
    assert sorted(of(indexed).frame.columns) == sorted(made.columns)
    one = of(made.set_index("visits"))
    assert np.array_equal(one.frame["visits"], made["visits"])
    assert list(of(made.iloc[::-1]).frame.columns) == list(made.columns)  # its index counts rows, and has no name
    with pytest.raises(MixwellError, match="the index and a column are both named 'town'"):
        of(made.set_index("town", drop=False))


def test_the_index_of_a_parquet_file_is_kept(tmp_path):
    frame().set_index("height").to_parquet(tmp_path / "a.parquet")
    assert np.array_equal(read(tmp_path / "a.parquet").frame["height"], frame()["height"])


def test_whole_numbers_that_floats_cannot_tell_apart_are_not_called_constant():
    top = np.uint64(2**64 - 1)
    made = frame().assign(near=top - np.arange(60, dtype=np.uint64) % np.uint64(7), far=np.arange(60) * 10**15 + 2**60,
                          three=[10**30 + i % 3 for i in range(60)], alike=np.full(60, top))
    columns = {column.name: column for column in choose(of(made))}
    for name in ("near", "three"):
        assert columns[name].kind == SKIP and "floats cannot tell apart" in columns[name].note, name
    assert columns["alike"].note.startswith("constant") and columns["far"].note == "numbers the rows"


def test_numbers_of_hundreds_of_digits_are_infinite():
    made = frame().astype({"height": object})
    made.loc[5, "height"] = 10**400
    with pytest.raises(MixwellError, match="column 'height' is infinite in row 6"):
        choose(of(made))


def test_a_count_beyond_what_floats_count_is_refused():
    model = tables.fit(frame(), components=[1], family="diag", starts=1)
    with pytest.raises(MixwellError, match=r"'visits' holds 1e\+200 in row 1; expected a count"):
        model.predict(frame().astype({"visits": float}).assign(visits=lambda f: [1e200, *f.visits[1:]]))


def test_thousands_of_columns_are_read_in_little_work(tmp_path, monkeypatch):
    """pandas' slow ways over a column are not gone for columns of plain numbers, and no covariance is made."""
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 4000)).round(3))
    table = of(wide)
    monkeypatch.setattr("mixwell.tables.columns._parsed", None)
    columns = choose(table)
    assert len(used(columns)) == 4000 and encode(table, columns).shape == (30, 4000)
    monkeypatch.setattr(search, "_fitted", None)
    rows = search.Rows(encode(table, columns), columns)
    for family, words in (("full", "need 4001 each"), ("tied", "covariance of 4000 columns"), ("student_t", "4001")):
        candidate, model = search._try(rows, Candidate(family=family, n_components=1), 1, 0)
        assert model is None and words in candidate.refused


def test_many_columns_are_found_in_their_file_and_too_many_refused(tmp_path):
    """The line of names is longer than what a delimiter is judged by."""
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(24, 800)).round(3))
    wide.columns = [f"a_very_long_name_{i:0100d}" for i in range(800)]
    wide.to_csv(tmp_path / "wide.csv", index=False)
    pd.testing.assert_frame_equal(read(tmp_path / "wide.csv").frame, wide)


@pytest.mark.parametrize("ending", ["csv", "parquet", "feather", "jsonl", "xlsx"])
def test_too_many_columns_are_refused_in_one_line_before_values_are_read(tmp_path, monkeypatch, ending):
    if ending == "xlsx":
        pytest.importorskip("openpyxl")
    wide = pd.DataFrame(np.full((1, 2501), 1.5), columns=[f"g{i}" for i in range(2501)])
    path = tmp_path / f"wide.{ending}"
    writers = {"csv": lambda: wide.to_csv(path, index=False), "parquet": lambda: wide.to_parquet(path),
               "feather": lambda: wide.to_feather(path), "xlsx": lambda: wide.to_excel(path, index=False),
               "jsonl": lambda: wide.to_json(path, orient="records", lines=True)}
    writers[ending]()
    for reader in ("read_csv", "read_parquet", "read_feather", "read_json"):
        monkeypatch.setattr(pd, reader, None)
    with pytest.raises(MixwellError, match=f"wide.{ending} has 2501 columns; at most 2500 are read from a file. Save"):
        read(path)


def test_a_first_line_hides_no_columns(tmp_path, monkeypatch):
    monkeypatch.setattr("mixwell.tables.reading.MOST_COLUMNS", 2)
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n{"a": 2, "b": 3, "c": 4}\n')
    with pytest.raises(MixwellError, match="has 3 columns; at most 2"):
        read(tmp_path / "t.jsonl")


def test_covariances_that_do_not_fit_in_memory_are_refused_with_their_size(monkeypatch):
    monkeypatch.setattr(search, "memory_bytes", lambda: 10_000)
    columns = choose(of(frame()))
    rows = search.Rows(encode(of(frame()), columns), columns)
    assert search._hopeless(rows, "diag", 2) == ""
    monkeypatch.setattr(search, "memory_bytes", lambda: 95)
    assert search._hopeless(rows, "diag", 2) == "its covariances take 96\u202fB, this machine has 95\u202fB"
