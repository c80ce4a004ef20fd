"""A table fitted: columns judged, size and family chosen, the report's content, the folder, labels, refusals."""

import json
import os
import re
import signal
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest

from mixwell import tables as lab_fit
from mixwell.core import registry
from mixwell.core.errors import MixwellError
from mixwell.core.files import digest_file
from mixwell.formats import sealed
from mixwell.formats.tensors import SINGLE, open_file, save_tensors
from mixwell.tables.candidates import FAMILIES
from mixwell.tables.columns import choose, decode, encode
from mixwell.tables.describe import radius, tail_shares
from mixwell.tables.model import FILE
from mixwell.tables.reading import Table, of
from mixwell.tables.sections import compared, natural
from mixwell.tables.view import lead, unusual, verdict
from tests.report.pages import balanced, text_of

OPTIONS = {"components": range(1, 4), "family": "diag,full", "starts": 2}


def planted(rows=180, seed=0):
    """Three groups of people; one row (the fifth) that fits nowhere."""
    rng = np.random.default_rng(seed)
    group = np.arange(rows) % 3
    frame = pd.DataFrame({
        "person_id": np.arange(rows) + 7, "height": np.array([150.0, 170.0, 190.0])[group] + rng.normal(0, 3, rows),
        "income": np.array([1000.0, 4000.0, 2000.0])[group] + rng.normal(0, 200, rows),
        "visits": rng.poisson(np.array([1.0, 6.0, 12.0])[group]),
        "town": np.where(rng.random(rows) < 0.9, np.array(["Ulm", "Bonn", "Kiel"])[group], "Ulm"), "planet": "Earth",
        "group": np.array(["short", "middle", "tall"])[group]})
    frame.loc[4, ["height", "income"]] = [240.0, 9000.0]
    frame.loc[rng.choice(np.arange(10, rows), 20, replace=False), "height"] = np.nan
    frame.loc[7, "town"] = None
    return frame


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The model, its folder, the table."""
    folder = tmp_path_factory.mktemp("fit") / "out"
    return lab_fit.fit(planted(), against="group", out=folder, **OPTIONS), folder, planted()


def kinds(frame, **wanted):
    return {c.name: c.kind for c in choose(of(frame), wanted)}


def test_columns_are_judged():
    rng = np.random.default_rng(0)
    n = 60
    frame = pd.DataFrame({
        "row": np.arange(n), "year": rng.integers(1990, 2020, n), "rating": rng.integers(1, 6, n),
        "children": rng.poisson(2.0, n), "smokes": rng.integers(0, 2, n), "flag": rng.random(n) < 0.5,
        "name": [f"p{i}" for i in range(n)], "when": pd.date_range("2020", periods=n), "none": [None] * n,
        "text_number": [str(v) for v in rng.normal(size=n).round(3)], "one": 1.0})
    assert kinds(frame) == {"row": "skip", "year": "numeric", "rating": "numeric", "children": "count",
                            "smokes": "category", "flag": "category", "name": "skip", "when": "skip", "none": "skip",
                            "text_number": "numeric", "one": "skip"}
    overruled = kinds(frame, rating="category", children="numeric", year="skip", row="numeric")
    assert [overruled[c] for c in ("rating", "children", "year", "row")] == ["category", "numeric", "skip", "numeric"]
    notes = {c.name: c.note for c in choose(of(frame))}
    assert notes["row"] == "numbers the rows" and "constant (1" in notes["one"] and notes["none"] == "empty"
    assert "60 different values" in notes["name"] and "not modelled" in notes["when"]


def test_dates_are_left_out_whether_text_or_not():
    days = pd.Series(pd.date_range("2020-01-01", periods=5).astype(str).tolist() * 8)
    frame = pd.DataFrame({"x": np.arange(40) ** 2, "day": days, "time": days + "T08:30:00Z", "part": days + "th"})
    frame.loc[3, "day"] = None
    columns = {c.name: c for c in choose(of(frame))}
    assert kinds(frame) == {"x": "numeric", "day": "skip", "time": "skip", "part": "category"}
    assert columns["day"].note == columns["time"].note == "dates and times are not modelled"
    assert kinds(frame, day="category")["day"] == "category"


def test_encoding_goes_back_and_a_category_is_the_same_as_text_or_number():
    frame = pd.DataFrame({"x": [1.0, 2.0, 4.0, np.nan], "code": [1, 2, 1, 2]})
    columns = choose(of(frame))
    x_ND = encode(of(frame), columns)
    np.testing.assert_allclose(decode(columns[0], x_ND[:, 0]), frame["x"])
    assert decode(columns[1], x_ND[:, 1]).tolist() == ["1", "2", "1", "2"]
    for code in (["1", "2", "1", "2"], [1.0, 2.0, 1.0, 2.0]):
        np.testing.assert_array_equal(encode(of(frame.assign(code=code)), columns), x_ND)


def test_the_planted_groups_are_found(fitted):
    model, _, frame = fitted
    labels = model.predict(frame)
    table = pd.crosstab(labels["component"], frame["group"])
    assert model.n_components == 3 and table.to_numpy().max(1).sum() >= 0.97 * len(frame)
    assert [c.name for c in model.used] == ["height", "income", "visits", "town"]
    assert np.allclose(labels.filter(like="probability").sum(axis=1), 1)


def test_labels_equal_the_estimators_and_densities_are_in_the_datas_units(fitted):
    model, folder, frame = fitted
    labels, x_ND = model.predict(frame), model.encode(frame)
    np.testing.assert_array_equal(labels["component"] - 1, model.estimator.predict(x_ND))
    np.testing.assert_array_equal(labels.filter(like="probability"), model.estimator.predict_proba(x_ND))
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "labels.parquet"), labels)
    tall = lab_fit.fit(frame.assign(height=frame["height"] / 100), columns={"group": "skip"}, **OPTIONS)
    shift = tall.predict(frame.assign(height=frame["height"] / 100))["log_density"] - labels["log_density"]
    np.testing.assert_allclose(shift, np.where(frame["height"].notna(), np.log(100), 0), atol=0.02)


@pytest.mark.parametrize("family", ["full", "tied", "diag", "spherical", "student_t"])
def test_the_folder_gives_the_same_model_back(tmp_path, family):
    frame = planted().drop(columns=["person_id", "group"]).fillna({"height": 170.0})
    model = lab_fit.fit(frame, components=[2], family=family, starts=1, out=tmp_path / "out")
    again = lab_fit.load(tmp_path / "out")
    pd.testing.assert_frame_equal(again.predict(frame), model.predict(frame))
    pd.testing.assert_frame_equal(again.sample(50), model.sample(50))
    assert again.columns == model.columns and again.choice == model.choice and again.family == family
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "labels.parquet", FILE, "model.safetensors", "report.html", "report.json"]


def test_the_report_says_what_was_planted(fitted):
    model, folder, _ = fitted
    html = (folder / "report.html").read_text()
    page, words = balanced(html), text_of(html)
    assert page.outside == [] and {"components", "pairs", "against", "choice", "certainty", "outliers", "samples",
                                   "columns", "machine"} <= set(page.ids)
    assert "The 180 rows of table are described best by 3 components" in words
    assert re.search(r"Outliers row log density .*?combination|Outliers .*? row 5 −\d+\.\d below 0\.1 %", words)
    assert words.index("row 5 ") < words.index("Samples beside the data", words.index("row 5 "))
    assert "income 9000" in words and "town = Bonn" in words and "compared with the components afterwards" in words
    assert re.search(r"height number 20 numbers with fractions \S+ to 240 \S+ · \S+ · \S+ ", words)
    assert "person_id left out numbers the rows 7 · 8 · 9" in words
    assert "constant ('Earth' in every row)" in words and "BIC, smaller is better" in words
    income_K = decode(model.columns[2], model.estimator.blocks_[0].estimator.means_[:, 1])
    assert income_K.min() == pytest.approx(1000, abs=60) and "NaN" not in words
    assert all(f"{v:,.0f} ±".replace(",", " ") in words for v in income_K)
    assert html.count('class="ellipse') == 2 * 2 * 3  # one pair, data and samples, two ellipses a component


def test_families_are_called_by_the_catalogues_titles_everywhere(fitted):
    model, folder, _ = fitted
    gaussian, student = (registry.find(f"density.mixtures.{name}").title for name in ("gaussian", "student_t"))
    assert all(words.startswith(student if name == "student_t" else gaussian) for name, words in FAMILIES.items())
    words = text_of((folder / "report.html").read_text())
    for name in ("diag", "full"):
        assert words.count(FAMILIES[name]) >= 2, "in the legend and in the table"
        assert f"{FAMILIES[name]} {name} " in words, "beside its option"
    assert model.family in ("diag", "full") and FAMILIES[model.family] in lead(model)
    assert re.search(rf"Next comes? \d components? \({gaussian}, ", verdict(model, list(model.choice.candidates)))


def test_the_chosen_point_is_marked_where_it_lies(fitted):
    model, folder, _ = fitted
    html = (folder / "report.html").read_text()
    points = {name: spots.split() for spots, name in re.findall(r'points="([^"]+)" data-name="([^"]+)"', html)}
    best = model.choice.best
    own = points[best.words]
    place = [c.n_components for c in model.choice.candidates if c.form == best.form].index(best.n_components)
    assert set(points["chosen"]) == {own[place]}


@pytest.mark.parametrize(("rows", "odd", "told"), [
    (100, 0, "No unusual rows."), (100, 1, "1 unusual row, where chance would give less than one."),
    (500, 3, "3 unusual rows, where chance would give less than one."),
    (4000, 12, "12 unusual rows, where chance would give about 4."),
])
def test_unusual_rows_are_counted_in_few_words(rows, odd, told):
    share_N = np.full(rows, 0.5)
    share_N[:odd] = 0.0
    assert unusual(share_N) == told


def test_known_groups_stand_in_their_own_order():
    for groups in (["class_2", "class_10", "class_1"], ["10.5", "2.25", "1.5", "none"], ["b", "A", "c"]):
        frame = pd.DataFrame({"g": groups * 3})
        found = compared(Table(frame, "t"), "g", np.arange(3 * len(groups)) % 2, 2)
        shown = re.findall(r">([^<>]+)<", str(found["map"]))
        assert [name for name in shown if name in groups] == sorted(groups, key=natural)
    assert sorted(["class_10", "class_2", "b", "10", "9", "1.5"], key=natural) == ["1.5", "9", "10", "b", "class_2",
                                                                                  "class_10"]
    many = pd.DataFrame({"g": [f"g{i}" for i in range(30)] + ["g29"]})
    found = compared(Table(many, "t"), "g", np.zeros(31, dtype=int), 1)
    assert found["shown"] == "The 20 largest groups of 30 are shown." and "g29" in str(found["map"])


def test_outliers_are_held_against_rows_that_lack_the_same(fitted):
    model, _, frame = fitted
    share_N, score_N = tail_shares(model, model.encode(frame))
    assert score_N.argmax() == 4 and share_N[4] == 0
    holes = frame["height"].isna().to_numpy()
    assert abs(share_N[holes].mean() - 0.5) < 0.2 and abs(share_N[~holes].mean() - 0.5) < 0.1


def test_ellipses_hold_their_share():
    rng = np.random.default_rng(0)
    z_N2 = rng.standard_normal((20000, 2))
    t_N2 = z_N2 / np.sqrt(rng.chisquare(5, 20000) / 5)[:, None]
    for share in (0.5, 0.9):
        assert (np.hypot(*z_N2.T) < radius(share, None)).mean() == pytest.approx(share, abs=0.01)
        assert (np.hypot(*t_N2.T) < radius(share, 5.0)).mean() == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("criterion", ["bic", "icl", "aic", "cv"])
def test_every_criterion_chooses_by_its_own_numbers(criterion):
    model = lab_fit.fit(planted()[["income", "visits"]], criterion=criterion, components=[1, 3], family="diag",
                        starts=1, folds=3)
    values = {c.n_components: getattr(c, criterion) for c in model.choice.candidates}
    assert model.n_components == min(values, key=values.get) == 3 and all(map(np.isfinite, values.values()))
    best = model.choice.best
    assert best.icl >= best.bic == pytest.approx(-2 * best.log_likelihood + best.n_parameters * np.log(180))


def test_tables_without_numbers_are_fitted_too(tmp_path):
    frame = planted()[["visits", "town"]]
    model = lab_fit.fit(frame, components=[2, 3], starts=1, out=tmp_path / "out")
    words = text_of((tmp_path / "out" / "report.html").read_text())
    assert model.family == "discrete" and "Most telling pairs" not in words
    pd.testing.assert_frame_equal(lab_fit.load(tmp_path / "out").predict(frame), model.predict(frame))
    with pytest.raises(MixwellError, match="'full' describes numbers, and no column is numeric"):
        lab_fit.fit(frame, family="full")


def test_one_component_says_so(tmp_path):
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(80, 3)), columns=list("abc"))
    lab_fit.fit(frame, components=[1, 2], family="full", starts=1, out=tmp_path / "out")
    words = text_of((tmp_path / "out" / "report.html").read_text())
    assert "no separate groups" in words and "Certainty" not in words
    lab_fit.fit(frame, components=[1], family="full", starts=1, out=tmp_path / "out")
    assert "more were not tried" in text_of((tmp_path / "out" / "report.html").read_text())


def test_an_interruption_keeps_the_best_so_far(tmp_path):
    def stop(done, total, words):
        if done == 2:
            raise KeyboardInterrupt

    table = planted().drop(columns="visits")  # counts are tried by two families
    model = lab_fit.fit(table, components=[1, 2, 3], family="diag", starts=1, progress=stop, out=tmp_path / "out")
    assert model.choice.stopped and model.n_components == 2
    assert "stopped after 2 of 3 fits" in text_of((tmp_path / "out" / "report.html").read_text())

    def at_once(done, total, words):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab_fit.fit(planted(), progress=at_once, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("presses", [1, 2])
def test_one_ctrl_c_while_the_folder_is_written_loses_nothing(tmp_path, monkeypatch, presses):
    real, told = lab_fit.write_text, []

    def pressed(*arguments):
        for _ in range(presses):
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(lab_fit, "write_text", pressed)
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) if presses == 2 else nullcontext():
            lab_fit.fit(planted(60)[["income"]], components=[1], family="diag", starts=1, out=tmp_path / "out",
                        progress=lambda *now: told.append(now))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, usual)
    assert told[-1] == (1, 1, "write the report; Ctrl-C again ends without it")
    assert (tmp_path / "out" / "report.html").is_file() == (presses == 1)
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if presses == 1 else [])


def test_components_that_hold_too_few_rows_are_not_chosen():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(24, 6)))
    model = lab_fit.fit(frame, components=range(1, 6), family="full", starts=1)
    assert model.n_components == 1
    assert "are too many for 144 values" in model.choice.candidates[2].refused
    assert model.choice.candidates[-1].refused == "24 rows are too few for 5 components that need 7 each"
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 4)))
    frame.loc[:2] += 50  # three rows of their own have no covariance in four columns
    model = lab_fit.fit(frame, components=[1, 2], family="full", starts=1)
    assert model.n_components == 1 and "3.0 rows, fewer than the 5" in model.choice.candidates[1].refused


def broken(**changes):
    frame = planted(30).drop(columns=["person_id", "group", "planet"]).assign(height=170.0)
    frame["height"] += np.arange(30) % 7
    for name, (row, value) in changes.items():
        frame[name] = frame[name].astype(object)
        frame.loc[row, name] = value
    return frame


@pytest.mark.parametrize(("frame", "options", "words"), [
    (broken(income=(3, np.inf)), {}, "'income' is infinite in row 4"),
    (broken(income=(3, "many")), {}, "'income' mixes numbers and text: 'many' in row 4"),
    (broken(income=(3, "many")), {"columns": {"income": "numeric"}}, "'income' holds 'many' in row 4"),
    (broken(visits=(5, -1)), {"columns": {"visits": "count"}}, "'visits' holds -1 in row 6; expected a count"),
    (planted(30).iloc[:1], {}, "1 row; expected at least 2"),
    (pd.DataFrame({"a": [1, 1, 1], "b": ["x", "x", "x"]}), {}, "no column to fit .a: constant"),
    (broken(), {"columns": {"heigth": "skip"}}, "no column 'heigth'. Did you mean 'height'"),
    (broken(), {"columns": {"height": "number"}}, "'height' cannot be 'number'; expected one of"),
    (broken(), {"family": "fulll"}, "unknown family 'fulll'. Did you mean 'full'"),
    (broken(), {"criterion": "bix"}, "unknown criterion 'bix'"),
    (broken(), {"components": [40]}, "30 rows are too few for 40 components"),
    (broken(), {"against": "grp"}, "no column 'grp'"),
])
def test_what_is_wrong_with_a_table_is_one_line_and_nothing_is_written(tmp_path, frame, options, words):
    with pytest.raises(MixwellError, match=words) as caught:
        lab_fit.fit(frame, out=tmp_path / "out", **options)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("change", "words"), [
    (lambda f: f.drop(columns="income"), "lacks the column 'income'"),
    (lambda f: f.assign(town=["Ulm", "Born", *f["town"][2:]]), "unknown category 'Born' in row 2. Did you mean 'Bonn'"),
    (lambda f: f.assign(income=["x", *f["income"][1:]]), "'income' holds 'x' in row 1"),
    (lambda f: f.assign(income=[np.inf, *f["income"][1:]]), "'income' is infinite in row 1"),
    (lambda f: f.assign(visits=[0.5, *f["visits"][1:]]), "'visits' holds 0.5 in row 1; expected a count"),
])
def test_rows_that_the_model_cannot_label_are_refused(fitted, tmp_path, change, words):
    _, folder, frame = fitted
    with pytest.raises(MixwellError, match=words):
        lab_fit.predict_file(folder, change(frame), tmp_path / "l.parquet")
    assert list(tmp_path.iterdir()) == []


def test_unknown_categories_may_count_as_missing(fitted):
    model, _, frame = fitted
    odd, none = (model.predict(frame.assign(town=v), unknown="missing") for v in ("Mars", None))
    pd.testing.assert_frame_equal(odd, none)
    with pytest.raises(MixwellError, match="'error' or 'missing', not for 'ignore'"):
        model.predict(frame, unknown="ignore")


def reseal(folder, **changes):
    """Write mixture.json with other entries, as another program might that knows its form: all digests fit."""
    record = json.loads((folder / FILE).read_text())
    del record["digest"]
    sealed.write(folder / FILE, {**record, "numbers": digest_file(folder / SINGLE), **changes})


def test_a_bit_that_flips_in_a_fit_is_found(fitted, tmp_path):
    fitted[0].save(tmp_path)
    for name in (FILE, SINGLE):
        whole = (tmp_path / name).read_bytes()
        for place in range(0, 8 * len(whole), 8 * len(whole) // 97):
            spoilt = bytearray(whole)
            spoilt[place // 8] ^= 1 << place % 8
            (tmp_path / name).write_bytes(spoilt)
            with pytest.raises(MixwellError, match=r"^[^\n]+$"):
                lab_fit.load(tmp_path)
        (tmp_path / name).write_bytes(whole)
    assert lab_fit.load(tmp_path).n_components == 3


def test_a_folder_of_another_version_or_with_damage_is_refused(fitted, tmp_path):
    model, folder, _ = fitted
    record = json.loads((folder / FILE).read_text())
    with pytest.raises(MixwellError, match=f"holds no {FILE}"):
        lab_fit.load(tmp_path)
    for change, words in [({"format_version": 1}, "format version 1, written by mixwell"),
                          ({"format": "x"}, "no mixture"), ({"n_components": 7}, "3 components, the model 7"),
                          ({"columns": [{}]}, "is damaged"), ({"rows": None}, "'rows' is None, expected a whole"),
                          ({"choice": {}}, "it lacks 'best'"), ({"source": 3}, "'source' is no text"),
                          ({"columns": record["columns"][:4]}, "'category._flat_probabilities', for which"),
                          ({"columns": record["columns"][2:]}, r"'numeric.means_' has the shape \(3, 2\)"),
                          ({"columns": record["columns"] * 2}, "two columns have the same name")]:
        model.save(tmp_path)
        reseal(tmp_path, **change)
        with pytest.raises(MixwellError, match=words):
            lab_fit.load(tmp_path)


@pytest.mark.parametrize(("place", "value", "words"), [
    (("columns", 2, "center"), None, "'center' is None"), (("columns", 2, "center"), "nan", "'center' is 'nan'"),
    (("columns", 2, "scale"), 0, "'income': scale is 0"), (("columns", 2, "scale"), -1.5, "scale is -1.5"),
    (("columns", 2, "name"), None, "'name' is None"), (("columns", 2, "kind"), "number", "unknown kind 'number'"),
    (("columns", 2, "zz"), 1, "unknown entry 'zz'"), (("columns", 4, "categories"), ["a", "a", "b"], "categories"),
    (("columns", 4, "categories"), [], "no categories"), (("choice", "best", "family"), "odd", "unknown family 'odd'"),
    (("choice", "best", "family"), "discrete", "'discrete' is not for these columns"),
    (("choice", "best", "family"), "spherical", "'numeric.covariances_' has the shape"),
    (("choice", "best", "family"), "student_t", r"has the shape|lacks 'numeric.dofs_'"),
    (("choice", "criterion"), "best", "unknown criterion 'best'"), (("choice", "planned"), "x", "'planned' is 'x'"),
])
def test_a_damaged_value_is_one_line(fitted, tmp_path, place, value, words):
    model, folder, _ = fitted
    record = json.loads((folder / FILE).read_text())
    inner = record
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    model.save(tmp_path)
    reseal(tmp_path, **{name: record[name] for name in ("columns", "choice")})
    with pytest.raises(MixwellError, match=f"is damaged .*({words}).*; fit again") as caught:
        lab_fit.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "change", "words"), [
    ("weights_", lambda a: -a, "'weights_' are no probabilities"), ("weights_", lambda a: 2 * a, "no probabilities"),
    ("category._flat_probabilities", lambda a: -a, "no probabilities"), ("count.rates_", lambda a: -a, "below 0"),
    ("numeric.precisions_cholesky_", lambda a: -a, "'precisions_cholesky_' is not above 0"),
    ("numeric.covariances_", lambda a: a[:, None], "'numeric.covariances_' has the shape"),
    ("numeric.means_", lambda a: a.int(), "other than finite float64"),
    ("numeric.means_", lambda a: a / 0, "other than finite float64"), ("count.rates_", None, "lacks 'count.rates_'"),
])
def test_damaged_arrays_are_one_line(fitted, tmp_path, name, change, words):
    fitted[0].save(tmp_path)
    held = {n: tensor.clone() for n, tensor in open_file(tmp_path / SINGLE).items()}
    found = held.pop(name)
    save_tensors(tmp_path / SINGLE, held if change is None else {**held, name: change(found)})
    reseal(tmp_path)
    with pytest.raises(MixwellError, match=f"{SINGLE} is damaged .*{words}.*; fit again"):
        lab_fit.load(tmp_path)


@pytest.mark.parametrize(("out", "words"), [
    ("people.csv", "is the table to label"), ("link.csv", "is the table to label"),
    ("model/new.parquet", "in the folder of the model"), ("model/report.html", "in the folder of the model"),
    ("other.parquet", "is there already; remove it, or name another"),
    ("model", "is a folder"), ("people.csv/x", r"cannot write .*/x \(a file is where .*\); name another"),
    ("/proc/x.parquet", "cannot write /proc/x.parquet"),
])
def test_labels_take_nothings_place(fitted, tmp_path, out, words):
    model, _, frame = fitted
    (tmp_path / "model").mkdir()
    model.save(tmp_path / "model")
    (tmp_path / "model" / "report.html").write_text("a report")
    frame.to_csv(tmp_path / "people.csv", index=False)
    (tmp_path / "link.csv").symlink_to(tmp_path / "people.csv")
    (tmp_path / "other.parquet").write_text("others'")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(MixwellError, match=words) as caught:
        lab_fit.predict_file(tmp_path / "model", tmp_path / "people.csv", tmp_path / out)
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_labels_stay_out_of_the_tables_folder_and_find_new_folders(fitted, tmp_path):
    _, folder, frame = fitted
    (tmp_path / "data").mkdir()
    frame.to_csv(tmp_path / "data" / "a.csv", index=False)
    with pytest.raises(MixwellError, match="in the folder of the model or of the table"):
        lab_fit.predict_file(folder, tmp_path / "data", tmp_path / "data" / "labels.parquet")
    assert lab_fit.predict_file(folder, tmp_path / "data", tmp_path / "new" / "deep" / "labels.parquet") == 180


@pytest.mark.parametrize(("out", "words"), [
    ("file/x", "cannot write .*/x"), ("file/x/y", "cannot write .*/y"), ("/proc/x", "cannot write /proc/x"),
    ("n" * 300, "cannot write n*"), ("here", "is the folder you are in"), ("new/deep/x", "the search began"),
])
def test_a_folder_that_cannot_be_written_is_refused_before_the_search(tmp_path, monkeypatch, out, words):
    def search(*_, **__):
        raise MixwellError("the search began")

    monkeypatch.setattr(lab_fit, "choose_mixture", search)
    (tmp_path / "file").write_text("a file")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(MixwellError, match=words) as caught:
        lab_fit.fit(planted(30), out=tmp_path / out)
    assert "\n" not in str(caught.value) and sorted(p.name for p in tmp_path.iterdir()) == ["file", "here"]


@pytest.mark.parametrize("unit", [1.0, 1e-6])  # with the second, not even the standardised value is a number
def test_a_row_beyond_all_numbers_is_refused_by_name(unit):
    frame = planted(60)[["income", "town"]].assign(income=lambda f: f["income"] * unit)
    model = lab_fit.fit(frame, components=[3], family="diag", starts=1)
    for far in (1e308, -1e200, 1e12 * unit):
        with pytest.raises(MixwellError, match=r"'income' holds .* in row 1, more than 1e\+07 standard deviations"):
            model.predict(frame.assign(income=[far, *frame["income"][1:]]))
    near = model.predict(frame.assign(income=[1e9 * unit, *frame["income"][1:]]))
    assert np.isfinite(near.to_numpy()).all()


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(MixwellError, match=r"is there already and holds 'thesis\.txt'"):
        lab_fit.fit(planted(), out=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(MixwellError, match=r"holds 'thesis.txt' beside a fit, which would be lost"):
        lab_fit.fit(planted(), out=tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MixwellError, match="pipe is there and is no folder"):
        lab_fit.fit(planted(), out=tmp_path / "pipe")


def test_the_default_table_is_wine_with_its_cultivars_held_back():
    ready = lab_fit.prepare(None)
    source, columns, against = ready.table, ready.columns, ready.against
    assert isinstance(source, Table) and source.frame.shape == (178, 14) and against == "cultivar"
    assert {c.kind for c in columns if c.name != "cultivar"} == {"numeric"}
