"""`mixwell scale` and `mixwell mix`: tables in, answers and JSON out."""

import functools
import json

import numpy as np
import pandas
import pytest
from typer.testing import CliRunner

from mixwell.cli import amounts
from mixwell.cli.main import app
from mixwell.core.errors import MixwellError
from mixwell.data.mixing.exponential_law import example
from mixwell.formats.amounts import number
from mixwell.report import mix_page, scale_page
from mixwell.scaling.laws.chinchilla import Chinchilla, grid


def call(*words):
    found = CliRunner().invoke(app, list(map(str, words)))
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found


@pytest.fixture
def runs(tmp_path):
    """Forty runs by the published law, in columns of other names."""
    table = grid(np.random.default_rng(0))
    loss = Chinchilla().curve(Chinchilla.published).predict(table)
    noise = np.exp(0.003 * np.random.default_rng(1).standard_normal(40))
    frame = pandas.DataFrame({"params": table["n"], "tokens": table["d"], "val": loss * noise})
    frame.to_csv(tmp_path / "runs.csv", index=False)
    return tmp_path / "runs.csv"


def test_a_table_becomes_a_law_a_prediction_and_a_choice(runs, tmp_path):
    written = tmp_path / "law.json"
    found = call("scale", runs, "--rename", "n=params,d=tokens,loss=val", "--budget", "flops=1e21", "--at", "n=7G",
                 "--at", "d=1T,2T", "--draws", 20, "--json", written)
    assert found.exit_code == 0, found.output
    assert "chinchilla: 40 runs" in found.stdout and "next run worth making" in found.stdout
    data = json.loads(written.read_text())
    alpha = data["fit"]["parameters"]["alpha"]
    assert alpha["low"] <= alpha["value"] <= alpha["high"] and abs(alpha["value"] - 0.348) < 0.06
    assert [row["n"] for row in data["predicted"]] == [7e9, 7e9] and data["predicted"][1]["d"] == 2e12
    assert data["predicted"][0]["low"] < data["predicted"][0]["loss"] < data["predicted"][0]["high"]
    best = data["best"]
    assert best["columns"]["n"] * best["columns"]["d"] * 6 == pytest.approx(1e21)
    assert best["interval"]["n"][0] <= best["columns"]["n"] * 1.01
    assert set(best["next_run"]) == {"n", "d"} and len(data["fit"]["residuals"]) == 40
    assert data["fit"]["left_out"] == 8 and f"hold {data['fit']['inside']} of 8" in found.stdout


def test_a_law_has_a_page_with_its_figures(runs, tmp_path):
    page, written = tmp_path / "law.html", tmp_path / "law.json"
    found = call("scale", runs, "--rename", "n=params,d=tokens,loss=val", "--budget", "flops=1e21", "--at", "n=7G",
                 "--at", "d=1T", "--draws", 20, "--report", page, "--json", written)
    assert found.exit_code == 0, found.output
    data, html = json.loads(written.read_text()), page.read_text()
    for name in ("best", "predicted", "parameters", "curves", "agreement", "residuals", "machine"):
        assert f'<h2 id="{name}">' in html
    assert f"{data['best']['loss']:.4f}" in html and f"{data['predicted'][0]['low']:.4f}" in html
    line = data["fit"]["curves"]["n"]
    others = np.exp(np.log(pandas.read_csv(runs)["tokens"]).mean())
    drawn = Chinchilla().curve({name: one["value"] for name, one in data["fit"]["parameters"].items()})
    np.testing.assert_allclose(line["loss"], drawn.predict({"n": line["x"], "d": others}))
    np.testing.assert_allclose(np.log(line["brought"]) - np.log(drawn.predict({"n": line["runs"], "d": others})),
                               data["fit"]["residuals"])
    assert all(low <= loss <= high for low, loss, high in zip(line["low"], line["loss"], line["high"]))


def test_a_page_tells_where_the_range_decided():
    best = {"columns": {"n": 1e12, "d": 1e9}, "loss": 2.0, "interval": {}}
    data = {"fit": {"largest_left_out": None, "why_not": "too few."}}
    edge, inside = (scale_page.points({**data, "best": {**best, "at_edge": at_edge}}) for at_edge in (True, False))
    assert "the range decides, not the law" in edge[2] and len(inside) == 2


def test_a_report_needs_runs_and_a_place(runs, tmp_path):
    found = call("scale", "--at", "n=7G", "--at", "d=1T", "--report", tmp_path / "x.html")
    assert found.exit_code == 2 and "give a table of runs" in found.stderr
    found = call("scale", runs, "--report", tmp_path)
    assert found.exit_code == 2 and "is a folder" in found.stderr


def test_a_published_law_needs_no_table():
    found = call("scale", "--law", "joint_moe", "--budget", "flops=1e20", "--choose", "e=8")
    assert found.exit_code == 0 and "990\u202fM" in found.stdout and "16.8\u202fG" in found.stdout


@pytest.mark.parametrize("words, message", [
    (["--law", "chinchila"], "unknown scaling.laws method 'chinchila'"),
    (["--law", "step"], "is no law of the loss"),
    (["--law", "upcycling"], "the paper's parameters of upcycling are not known here"),
    (["--budget", "memory=80G"], "flops is missing"),
    (["--budget", "flop=1e21"], "unknown 'flop'"),
    (["--budget", "flops=much"], "expected a number such as 7G"),
    (["--law", "joint_moe", "--budget", "flops=1e20"], "choices for 'e' are missing"),
    (["--coordinates", "16,32", "--budget", "flops=1e21"], "leave out the table, --rename, --budget"),
    (["--coordinates", "16,32.5"], "expected a whole number, got 32.5"),
    (["--budget", "flops=0"], "--budget: flops is 0.0; expected a number above 0"),
    (["--budget", "flops=1e21", "--choose", "e=1,2"], "--choose: unknown 'e'. Known: none"),
    (["--law", "joint_moe", "--choose", "e=1,2"], "add --budget"),
    (["--at", "n=1G", "--at", "d=1T", "--at", "dd=1"], "--at: unknown 'dd'. Did you mean 'd'"),
    (["--at", "n"], "expected COLUMN=A,B"),
    (["--at", "n=7G"], "the runs have no column 'd'")])
def test_what_scale_cannot_do_ends_in_one_line(words, message):
    found = call("scale", *words)
    assert found.exit_code == 2 and message in found.stderr and found.stderr.count("\n") == 1


def test_columns_that_are_not_there_are_named(runs):
    found = call("scale", runs)
    assert found.exit_code == 2 and "no column 'n'" in found.stderr and "params" in found.stderr
    assert "expected COLUMN=NAME" in call("scale", runs, "--rename", "n").stderr


def test_widths_are_checked_and_shown(tmp_path):
    page, written = tmp_path / "check.html", tmp_path / "check.json"
    found = call("scale", "--coordinates", "16,32", "--report", page, "--json", written)
    assert found.exit_code == 0, found.output
    assert json.loads(written.read_text())["widths"] == [16, 32] and page.is_file()
    assert "maximal update: " in found.stdout and "layers.1.channel_mixer" in found.stdout
    wrong = call("scale", "--coordinates", "64")
    assert wrong.exit_code == 2 and "expected two or more" in wrong.stderr


@pytest.fixture
def proxies(tmp_path):
    runs = example(np.random.default_rng(0))["runs"]
    frame = pandas.DataFrame(runs.weights_ND, columns=[f"weight.{name}" for name in runs.domains])
    for place, name in enumerate(runs.targets):
        frame[f"loss.{name}"] = runs.losses_NM[:, place]
    frame.to_csv(tmp_path / "proxies.csv", index=False)
    return tmp_path / "proxies.csv"


def test_proxies_become_weights_under_what_domains_have(proxies, tmp_path):
    written = tmp_path / "mix.json"
    found = call("mix", proxies, "--method", "exponential_law", "--target", "code=3", "--target", "docs", "--available",
                 "code=10M", "--available", "docs=5M", "--available", "prose=100M", "--available", "tables=100M",
                 "--tokens", "40M", "--epochs", 1, "--json", written)
    assert found.exit_code == 0, found.output
    data = json.loads(written.read_text())
    assert data["weights"]["code"] <= 0.25 + 1e-9 and data["weights"]["docs"] <= 0.125 + 1e-9
    assert sum(data["weights"].values()) == pytest.approx(1) and set(data["losses"]) == {"code", "docs"}
    assert "at its cap" in found.stdout and data["low"]["code"] < data["losses"]["code"] < data["high"]["code"]
    free = call("mix", proxies, "--method", "exponential_law", "--target", "code", "--beyond", "--json", written)
    assert free.exit_code == 0 and json.loads(written.read_text())["weights"]["code"] > 0.9


def test_a_mixture_has_a_page_with_its_figures(proxies, tmp_path, monkeypatch):
    two = functools.partial(mix_page.cross_validated, names=["exponential_law", "bivariate_law"])
    monkeypatch.setattr(mix_page, "cross_validated", two)
    page, written = tmp_path / "mix.html", tmp_path / "mix.json"
    found = call("mix", proxies, "--method", "exponential_law", "--target", "code=3", "--target", "docs", "--report",
                 page, "--json", written)
    assert found.exit_code == 0, found.output
    data, html = json.loads(written.read_text()), page.read_text()
    for name in ("weights", "losses", "observed", "trust", "runs", "machine"):
        assert f'<h2 id="{name}">' in html
    for name, weight in data["weights"].items():
        assert 0 <= data["weights_low"][name] <= data["weights_high"][name] <= data["caps"][name]
        assert f"{weight:.3f}" in html
    assert data["importance"] == {"code": 0.75, "docs": 0.25}
    assert data["coverage"]["tried"] == 2 * 10 * 2 and data["coverage"]["inside"] > 30
    assert set(data["cross_validation"]) == {"exponential_law", "bivariate_law"}
    tried = data["tried"]
    means = np.array(tried["observed"]) @ [0.75, 0.25]
    assert f"run {means.argmin() + 1}</th><td>{means.min():.4f}" in html


@pytest.mark.parametrize("words, message", [
    (["--target", "cod"], "unknown target 'cod'"), (["--method", "x"], "unknown data.mixing method 'x'"),
    (["--available", "code"], "expected NAME=NUMBER"), (["--available", "code=1M"], "give tokens, too"),
    (["--available", "cod=1M", "--tokens", "1M"], "--available: unknown 'cod'. Did you mean 'code'"),
    (["--tokens", "1M"], "--tokens counts beside --available"),
    (["--weight-prefix", "w_"], "no column begins with 'w_'")])
def test_what_mix_cannot_do_ends_in_one_line(proxies, words, message):
    found = call("mix", proxies, *(words if "--method" in words else ["--method", "exponential_law", *words]))
    assert found.exit_code == 2 and message in found.stderr and found.stderr.count("\n") == 1


def test_numbers_are_read_as_people_write_them():
    assert amounts.numbers("7G,1e3, 2.5k", "here") == [7e9, 1e3, 2500.0]
    assert number("8B", "here") == 8e9
    with pytest.raises(MixwellError, match="here: expected a number such as 7G or 1e21, got '7X'"):
        number("7X", "here")
    with pytest.raises(MixwellError, match="is too large"):
        number("1e308T", "here")
