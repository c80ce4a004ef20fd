"""What a fit answers: criteria in the data's units, weights, the edge of the range, telling columns, repeating it."""

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.datasets import load_iris
from typer.testing import CliRunner

from mixwell import tables
from mixwell.cli.main import app
from mixwell.core import registry, units
from mixwell.core.errors import MixwellError
from mixwell.tables.candidates import MCLUST, Candidate, Choice, counts_of
from mixwell.tables.columns import choose
from mixwell.tables.missing import Form
from mixwell.tables.preparing import prepare
from mixwell.tables.repeat import command, snippet
from mixwell.tables.telling import information
from mixwell.tables.view import verdict
from tests.report.pages import text_of

FAITHFUL = Path(__file__).with_name("faithful.csv")  # Azzalini, Bowman (1990), as R's data set of that name
GOODMAN = [42, 23, 6, 25, 6, 24, 7, 38, 1, 4, 1, 6, 2, 9, 2, 20]  # of the 16 answers to four questions


@pytest.mark.parametrize(("family", "components", "bic"), [("tied", 3, -2314.316), ("full", 2, -2322.192)])
def test_criteria_are_those_of_mclust(family, components, bic):
    fitted = tables.fit(FAITHFUL, components=[components], family=family)
    best = fitted.choice.best
    assert -best.bic == pytest.approx(bic, abs=0.1)  # EEE 3 and VVV 2 of mclust 6.0.0
    assert best.bic == pytest.approx(-2 * best.log_likelihood + best.n_parameters * np.log(272))
    assert best.log_likelihood == pytest.approx(fitted.predict(FAITHFUL)["log_density"].sum(), abs=1e-6)


def test_iris_has_mclusts_models_and_choice(tmp_path):
    """mclust 6.0.0 on iris: VEV with two groups, BIC -561.73, of all fourteen models; a model that minds the units."""
    x, _ = load_iris(return_X_y=True, as_frame=True)
    fitted = tables.fit(x, components=[1, 2, 3], family="mclust", starts=2, out=tmp_path / "out")
    best = fitted.choice.best
    assert (best.family, best.n_components) == ("VEV", 2)
    assert -best.bic == pytest.approx(-561.73, abs=0.05)
    told = {candidate.family for candidate in fitted.choice.candidates}
    assert len(told) == 14 and told == set(MCLUST)
    again = tables.load(tmp_path / "out")
    np.testing.assert_array_equal(again.predict(x)["component"], fitted.predict(x)["component"])
    assert "Gaussian mixture VEV" in text_of((tmp_path / "out" / "report.html").read_text())


def test_models_on_the_columns_axes_do_not_mind_the_units():
    x, _ = load_iris(return_X_y=True, as_frame=True)
    one = tables.fit(x, components=[2], family="VVI,EEE").choice
    other = tables.fit(x * [1, 10, 100, 0.1], components=[2], family="VVI,EEE").choice
    shift = 2 * 150 * np.log(100)
    for mine, its in zip(one.candidates, other.candidates):
        assert its.bic == pytest.approx(mine.bic + shift, abs=0.01)


@pytest.mark.parametrize("model", MCLUST)
def test_every_model_is_kept_and_described(model, tmp_path):
    x, _ = load_iris(return_X_y=True, as_frame=True)
    fitted = tables.fit(x.iloc[:, :3], components=[2], family=model, starts=1, out=tmp_path / "out")
    again = tables.load(tmp_path / "out")
    np.testing.assert_array_equal(again.predict(x)["component"], fitted.predict(x)["component"])


def test_intervals_are_in_the_datas_units(tmp_path):
    """Two groups far apart: mean +- 1.96 s / sqrt(n), and a share's as if the labels were known."""
    rng = np.random.default_rng(0)
    own = np.arange(400) % 4 == 0
    frame = pd.DataFrame({"height": rng.normal(np.where(own, 150.0, 400.0), 10.0), "visits": rng.poisson(3 + 20 * own),
                          "smokes": np.where(rng.random(400) < 0.2 + 0.5 * own, "yes", "no")})
    tables.fit(frame, components=[2], family="diag", out=tmp_path / "out")
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["intervals"] == {"level": 0.95, "by": "information matrix", "why_not": ""}
    small = min(told["components"], key=lambda part: part["weight"])
    low, high = small["weight_interval"]
    assert low < 0.25 < high and high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 * 0.75 / 400), rel=0.05)
    height, smokes = small["columns"]["height"], small["columns"]["smokes"]
    wide = 2 * 1.96 * frame.height[own].std(ddof=0) / 10
    low, high = height["mean_interval"]
    assert (low + high) / 2 == pytest.approx(height["mean"]) and high - low == pytest.approx(wide, rel=0.15)
    low, high = small["columns"]["visits"]["mean_interval"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(frame.visits[own].mean() / 100), rel=0.2)
    share = smokes["shares"]["yes"]
    low, high = smokes["shares_interval"]["yes"]
    assert low < share < high and high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 100), rel=0.1)
    low, high = height["mean_interval"]
    page = text_of((tmp_path / "out" / "report.html").read_text())
    assert "interval of the mean or the share, by the information matrix" in page
    assert f"{low:.1f} to {high:.1f}" in page
    low, high = small["weight_interval"]
    assert f"{units.percent(low, 0)} to {units.percent(high, 0)}".replace(units.THIN, " ") in page


def test_too_few_rows_for_intervals_are_told(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(40, 8)), columns=list("abcdefgh"))
    tables.fit(frame, components=[1], family="full", out=tmp_path / "out")
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["intervals"]["why_not"] == "No intervals: the rows do not tell all 44 free numbers apart."
    assert told["components"][0]["columns"]["a"]["mean_interval"] == []
    assert "do not tell all 44 free numbers" in text_of((tmp_path / "out" / "report.html").read_text())


def frequencies():
    bits = np.array([[n >> shift & 1 for shift in (3, 2, 1, 0)] for n in range(16)])
    return pd.DataFrame(bits, columns=list("abcd")).assign(n=GOODMAN)


def test_frequencies_are_rows(tmp_path):
    frame = frequencies()
    kinds = dict.fromkeys("abcd", "category")
    weighted = tables.fit(frame, components=[1, 2], weights="n", columns=kinds, out=tmp_path / "out", starts=8)
    whole = tables.fit(frame.loc[np.repeat(np.arange(16), GOODMAN), list("abcd")], components=[1, 2], columns=kinds,
                       starts=8)
    for mine, its in zip(weighted.choice.candidates, whole.choice.candidates):
        near = 1e-6 if mine.n_components == 1 else 0.4  # two classes are found from other starts
        assert mine.bic == pytest.approx(its.bic, abs=near) and mine.n_parameters == its.n_parameters
    assert weighted.total == 216 and 1057.313 <= weighted.choice.candidates[1].bic < 1058  # poLCA's, without a prior
    words = text_of((tmp_path / "out" / "report.html").read_text())
    assert "Weights n: frequencies of the rows, 216 in all." in words
    assert tables.load(tmp_path / "out").weights == weighted.weights
    assert [column.kind for column in weighted.columns] == ["category"] * 4 + ["skip"]


def test_survey_weights_are_scaled_to_the_number_of_rows():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=60), "w": rng.uniform(0.5, 3, 60)})
    frame.loc[0, "w"] = 0.0
    one = tables.fit(frame, components=[1], family="full", weights="w")
    ten = tables.fit(frame.assign(w=10 * frame.w), components=[1], family="full", weights="w")
    assert one.total == pytest.approx(59) and one.choice.best.bic == pytest.approx(ten.choice.best.bic)
    mean = one.used[0].center + one.used[0].scale * one.estimator.blocks_[0].estimator.means_[0, 0]
    assert mean == pytest.approx(np.average(frame.x, weights=frame.w), rel=1e-6)
    assert "survey weights of the rows, scaled to a mean of one" in one.weights


@pytest.mark.parametrize(("weights", "words"), [
    ([1, -1, 2, 3], "missing or negative in row 2"), ([1, 2, None, 3], "missing or negative in row 3"),
    ([0, 0, 0, 0], "are zero"), (["a", "b", "c", "d"], "'w' holds 'a' in row 1; expected a number")])
def test_weights_that_are_none_are_refused(weights, words):
    with pytest.raises(MixwellError, match=words):
        tables.fit(pd.DataFrame({"x": [1.5, 2, 3, 4], "w": weights}), weights="w")


def test_a_column_of_weights_must_be_there():
    with pytest.raises(MixwellError, match=r"no column 'weight' of weights. Did you mean 'weights'"):
        tables.fit(pd.DataFrame({"x": [1.5, 2], "weights": [1, 2]}), weights="weight")


def spread(groups, rows=60):
    rng = np.random.default_rng(0)
    return pd.DataFrame({"x": (20 * np.arange(groups)[:, None] + rng.normal(size=(groups, rows))).ravel()})


def test_the_range_is_extended_while_the_largest_is_the_best():
    fitted = tables.fit(spread(10), family="spherical", starts=2)
    tried = [candidate.n_components for candidate in fitted.choice.candidates]
    assert fitted.n_components == 10 and tried == list(range(1, 13)) and not fitted.choice.at_edge
    assert fitted.choice.notes == ("Up to 12 components were tried, since of 1 to 8 the largest number was the best.",)
    assert "very strong evidence" in verdict(fitted, fitted.choice.usable)


def test_the_edge_of_a_range_that_was_asked_for_is_no_evidence():
    fitted = tables.fit(spread(4), family="spherical", components=[1, 2, 3], starts=2)
    words = verdict(fitted, fitted.choice.usable)
    assert fitted.choice.at_edge and "evidence for the choice" not in words
    assert words.endswith("3 is the largest number tried: this is no evidence for 3 groups. Try more (--components "
                          "1-6), or families that fit the columns better.")


def test_larger_fits_that_were_refused_leave_the_edge_where_it_is():
    refused = {1: "", 2: "", 3: "too few"}
    few = [Candidate(family="full", n_components=k, bic=10.0 - k, refused=refused[k]) for k in refused]
    found = Choice(best=few[1], candidates=tuple(few), criterion="bic", planned=3)
    assert found.at_edge and found.usable == few[:2]


@pytest.mark.skipif("density.mixtures.negative_binomial" not in {e.name for e in registry.entries()},
                    reason="there is no negative binomial mixture")
def test_one_population_of_overdispersed_counts_is_one_group(tmp_path):
    rng = np.random.default_rng(3)
    counts = pd.DataFrame({name: rng.negative_binomial(2, 2 / (2 + mean), 400) for name, mean in
                           (("visits", 6), ("claims", 9), ("calls", 5))})
    assert counts_of(choose(tables.preparing.reading.of(counts))) == ["poisson", "negative_binomial"]
    fitted = tables.fit(counts, components=[1, 2, 3], starts=1, out=tmp_path / "out")
    assert fitted.n_components == 1 and fitted.choice.best.counts == "negative_binomial"
    poisson = [c.bic for c in fitted.choice.candidates if c.counts == "poisson"]
    assert min(poisson) == poisson[2], "Poisson components multiply"
    again = tables.load(tmp_path / "out")
    pd.testing.assert_frame_equal(again.predict(counts), fitted.predict(counts))
    shown = json.loads((tmp_path / "out" / "report.json").read_text())["components"][0]["columns"]["visits"]
    assert shown["standard_deviation"] == pytest.approx(counts.visits.std(), rel=0.1)


def two_groups():
    rng = np.random.default_rng(1)
    group = np.arange(200) % 2
    return pd.DataFrame({"far": 6.0 * group + rng.normal(size=200), "near": group + rng.normal(size=200),
                         "none": rng.normal(size=200), "seen": rng.poisson(2 + 6 * group),
                         "word": np.where(rng.random(200) < 0.2 + 0.6 * group, "a", "b")})


def test_columns_tell_as_much_as_bayes_rule_says():
    frame = two_groups()
    fitted = tables.fit(frame, components=[2], family="diag", starts=2)
    ready = prepare(frame)
    x_ND = fitted.encode(ready.table)
    told = information(fitted, x_ND)
    assert told[0] > 0.9 > told[3] > told[1] > told[2] and told[2] < 0.05 and 0.1 < told[4] < 0.5
    weights = fitted.estimator.weights_
    numeric, counts, words = (block.estimator for block in fitted.estimator.blocks_)
    densities = {0: stats.norm.pdf(x_ND[:, [0]], numeric.means_[:, 0], np.sqrt(numeric.covariances_[:, 0])),
                 3: stats.poisson.pmf(x_ND[:, [3]], counts.rates_[:, 0]),
                 4: words.probabilities_[0].T[x_ND[:, 4].astype(int)]}
    for place, density_NK in densities.items():
        posterior = density_NK * weights / (density_NK @ weights)[:, None]
        left = stats.entropy(posterior, axis=1).mean() / stats.entropy(weights)
        assert told[place] == pytest.approx(1 - left, abs=1e-9)


def test_student_components_tell_by_their_own_tails():
    frame = two_groups()[["far", "near"]]
    fitted = tables.fit(frame, components=[2], family="student_t", starts=2)
    x_ND = fitted.encode(frame)
    model = fitted.estimator.blocks_[0].estimator
    scale = np.sqrt(model.covariances_[:, 1, 1])
    density_NK = stats.t.pdf(x_ND[:, [1]], model.dofs_, model.means_[:, 1], scale)
    posterior = density_NK * fitted.estimator.weights_
    posterior /= posterior.sum(1, keepdims=True)
    left = stats.entropy(posterior, axis=1).mean() / stats.entropy(fitted.estimator.weights_)
    assert information(fitted, x_ND)[1] == pytest.approx(1 - left, abs=1e-9)


def test_the_answers_are_there_as_data(tmp_path):
    frame = two_groups()
    frame.to_csv(tmp_path / "t.csv", index=False)
    result = CliRunner().invoke(app, ["fit", str(tmp_path / "t.csv"), "--components", "2", "--family", "diag",
                                      "--starts", "1", "--json", "--out", str(tmp_path / "out")])
    told = json.loads(result.stdout)
    assert told == json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["n_components"] == 2 and told["rows"] == 200 and next(iter(told["telling"])) == "far"
    assert told["choice"]["best"]["bic_mclust"] == -told["choice"]["best"]["bic"]
    means = sorted(part["columns"]["far"]["mean"] for part in told["components"])
    assert means == pytest.approx([frame.far[::2].mean(), frame.far[1::2].mean()], abs=0.3)
    labels = pd.read_parquet(tmp_path / "out" / "labels.parquet")
    doubted = labels.filter(like="probability_").max(axis=1) < 0.95
    assert told["in_doubt"]["count"] == doubted.sum() and len(told["in_doubt"]["rows"]) == min(doubted.sum(), 100)
    words = text_of((tmp_path / "out" / "report.html").read_text())
    assert told["repeat"]["command"] in words and "Columns that tell them apart" in words
    assert "mclust writes it" in words


def test_the_command_makes_the_same_fit_again(tmp_path):
    asked = {"table": "my data.csv", "columns": {"a b": "count"}, "only": ["a b", "c"], "against": "g", "weights": "w",
             "form": Form(decimal=",", missing=("-999", "."), header=False, skip_rows=2), "components": [2, 3, 4],
             "family": "full", "criterion": "icl", "starts": 4, "folds": 5, "seed": 7, "search_rows": None}
    words = shlex.split(command(asked))
    assert words == ["mixwell", "fit", "my data.csv", "--components", "2-4", "--column", "a b=count", "--columns",
                     "a b,c", "--against", "g", "--weights", "w", "--decimal", ",", "--header", "no", "--skip-rows",
                     "2", "--missing=-999,.", "--family", "full", "--criterion", "icl", "--seed", "7",
                     "--search-rows", "all"]
    assert "search_rows=None" in snippet(asked)
    assert "components=range(2, 5)" in snippet(asked) and "form=tables.Form(decimal=','" in snippet(asked)
    compile(snippet(asked), "snippet", "exec")
    assert command({**asked, "table": ""}) == "" and "tables.fit(TABLE, " in snippet({**asked, "table": ""})
    assert "--components 2,5" in command({**asked, "components": [2, 5]})


def test_only_the_columns_asked_for_take_part():
    ready = prepare(two_groups(), only=["far", "word"])
    assert [column.kind for column in ready.columns] == ["numeric", "skip", "skip", "skip", "category"]
    assert ready.columns[1].note == "not among the columns asked for"
    with pytest.raises(MixwellError, match=r"no column 'fra'. Did you mean 'far'"):
        prepare(two_groups(), only=["fra"])


@pytest.mark.parametrize(("words", "line"), [
    (("--header", "maybe"), "--header: expected yes or no"), (("--delimiter", "::"), "--delimiter: expected one sign"),
    (("--decimal", "x"), "--decimal: expected . or ,"), (("--decimal", ".", "--thousands", "."), "are both '.'"),
    (("--weights", "n"), "no column 'n' of weights"), (("--columns", "n"), "no column 'n'")])
def test_options_that_say_nothing_are_one_line(tmp_path, words, line):
    (tmp_path / "t.csv").write_text("x,y\n1,2\n3,4\n5,7\n")
    result = CliRunner().invoke(app, ["fit", str(tmp_path / "t.csv"), *words])
    assert result.exit_code == 2 and line in result.stderr and result.stderr.count("\n") == 1


def test_what_is_said_of_the_file_reaches_it(tmp_path):
    (tmp_path / "t.csv").write_text("-999;1,5\n" + "".join(f"{i};{i},25\n" for i in range(1, 30)))
    result = CliRunner().invoke(app, [
        "fit", str(tmp_path / "t.csv"), "--components", "1", "--family", "diag", "--missing", "-999", "--header", "no",
        "--delimiter", "semicolon", "--decimal", ",", "--column", "column 1=numeric", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "column 1 number 1 (-999) 1 · 2 · 3 as asked" in lines
