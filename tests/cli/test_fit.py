"""`mixwell fit` from the command line."""

import re
import signal

import pandas as pd
import pytest
from typer.testing import CliRunner

from mixwell.cli.fit import parse_columns, parse_components
from mixwell.cli.main import app
from mixwell.core.errors import MixwellError
from tests.tables.test_fit import planted

QUICK = ("--components", "2-3", "--family", "diag", "--starts", "1")


def call(*words):
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder with the table, and what the command printed."""
    folder = tmp_path_factory.mktemp("cli")
    planted().to_csv(folder / "people.csv", sep=";", index=False)
    return folder, call("fit", folder / "people.csv", "--out", folder / "model", "--against", "group", *QUICK)


def test_fit_says_what_it_uses_and_names_the_report(done):
    folder, result = done
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for line in ("people: 180 rows, 7 columns", "fields are separated by semicolons"):
        assert line in [found.replace("\u202f", " ") for found in lines], line
    for words in (r"person_id left out 7 · 8 · 9 numbers the rows",
                  r"height number 20 \(empty\) \S+ · \S+ · \S+ numbers with",
                  r"visits count [\d ·]+ whole numbers from 0 that vary as counts do",
                  r"town category 1 \(empty\) \w+ · \w+ · \w+ 3 different words", r"planet left out Earth constant",
                  r"group left out short · middle · tall compared with"):
        assert any(re.match(words, line) for line in lines), words
    assert lines[-1] == f"report: {folder / 'model' / 'report.html'}" and (folder / "model" / "report.html").is_file()


def test_predict_writes_what_fit_wrote(done):
    folder, _ = done
    result = call("fit", "--predict", folder / "model", folder / "people.csv", "--out", folder / "new.parquet")
    assert result.exit_code == 0 and "(180 rows)" in result.stdout
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "new.parquet"),
                                  pd.read_parquet(folder / "model" / "labels.parquet"))


@pytest.mark.parametrize(("words", "line"), [
    (("none.csv",), "none.csv does not exist"), (("--components", "0-3"), "--components: expected"),
    (("--column", "rooms"), "--column: expected NAME=KIND"), (("--column", "alcohol=colour"), "cannot be 'colour'"),
    (("--criterion", "best"), "unknown criterion 'best'"), (("--predict", "model"), "needs a table"),
    (("--predict", "nowhere", "people.csv"), "holds no mixture.json"),
])
def test_what_is_wrong_is_one_line_and_exit_2(done, tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    result = call("fit", *words)
    assert result.exit_code == 2 and line in result.stderr and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_keep_the_best_and_say_so(done, tmp_path, monkeypatch, number, code):
    from mixwell.tables import search

    real, calls = search._try, []

    def once(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            signal.raise_signal(number)
        return real(*arguments)

    monkeypatch.setattr(search, "_try", once)
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = call("fit", done[0] / "people.csv", "--out", tmp_path / "model", *QUICK)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert result.exit_code == code and "stopped after 1 of 4 fits; the best so far is kept" in result.stderr
    assert (tmp_path / "model" / "report.html").is_file()


def test_ctrl_c_before_a_first_fit_does_not_promise_to_go_on(done, tmp_path, monkeypatch):
    from mixwell.tables import search

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "_try", stop)
    result = call("fit", done[0] / "people.csv", "--out", tmp_path / "model", *QUICK)
    assert result.exit_code == 130 and result.stderr == "stopped; the same command begins anew\n"
    assert list(tmp_path.iterdir()) == []


def test_predict_does_not_overwrite_its_table(done):
    folder, _ = done
    before = (folder / "people.csv").read_bytes()
    result = call("fit", "--predict", folder / "model", folder / "people.csv", "--out", folder / "people.csv")
    assert result.exit_code == 2 and "is the table to label" in result.stderr and result.stderr.count("\n") == 1
    assert (folder / "people.csv").read_bytes() == before


def test_numbers_and_columns_are_read():
    assert parse_components("1-3,8") == [1, 2, 3, 8] and parse_components(" 4 ") == [4]
    assert parse_columns(["a=b=count", "x=skip"]) == {"a=b": "count", "x": "skip"}
    for text in ("", "3-1", "a", "1-"):
        with pytest.raises(MixwellError, match="--components"):
            parse_components(text)
