"""Tables with more rows than a search looks at: some are searched, the choice is fitted to all, and that is told."""

import json

import numpy as np
import pandas as pd
import pytest

from mixwell import tables
from mixwell.cli.fit import parse_rows
from mixwell.core.errors import MixwellError
from mixwell.tables.describe import _patterns

OPTIONS = {"components": [2, 3], "family": "diag", "starts": 1}


def grouped(rows=1200):
    """Three groups of two numbers and a count."""
    rng = np.random.default_rng(1)
    group = np.arange(rows) % 3
    frame = pd.DataFrame({"a": rng.normal(0, 1, rows) + 6 * group, "b": rng.normal(0, 1, rows) + 5 * (group == 1),
                          "n": rng.poisson(1 + 9 * group)})
    return frame.assign(a=frame["a"].where(rng.random(rows) > 0.05))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The fit after a search on 300 rows with what it told, its folder, and the fit that looked at all rows."""
    out, told = tmp_path_factory.mktemp("large") / "out", []
    some = tables.fit(grouped(), search_rows=300, out=out, progress=lambda *now: told.append(now), **OPTIONS)
    return some, told, out, tables.fit(grouped(), search_rows=None, **OPTIONS)


def test_the_choice_is_that_of_all_rows_and_so_are_its_numbers(both):
    some, _, _, every = both
    assert (some.n_components, some.family) == (every.n_components, every.family) == (3, "diag")
    final, best = some.choice.final, every.choice.best
    assert final.converged and abs(final.bic - best.bic) < 0.05 and final.n_parameters == best.n_parameters
    assert some.choice.searched == 300 and every.choice.searched == 0 and every.choice.final is None
    assert abs(some.choice.best.log_likelihood) < abs(final.log_likelihood) / 3  # of a fourth of the rows
    x_ND = every.encode(grouped())
    np.testing.assert_allclose(some.estimator.weights_, every.estimator.weights_, atol=1e-3)
    assert np.mean(some.estimator.predict(x_ND) == every.estimator.predict(x_ND)) > 0.998


def test_what_was_searched_is_told_everywhere(both):
    some, told, out, _ = both
    words = "The candidates were fitted to 300 of the 1\u202f200 rows, drawn at random (seed 0); the choice was then"
    record = json.loads((out / "report.json").read_text(encoding="utf-8"))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert any(note.startswith(words) for note in record["notes"]) and words in page and "of 300 rows; of all" in page
    assert record["choice"]["rows_searched"] == 300
    assert record["choice"]["on_all_rows"]["bic"] == some.choice.final.bic != record["choice"]["best"]["bic"]
    assert "search_rows=300" in record["repeat"]["python"] and "2 to 3 tried on 300 rows drawn" in record["cite"]
    done, planned, last = told[-1]
    assert done == planned == len(some.choice.candidates) + 1 and last == "write labels and report"
    assert any(words.startswith("the choice on all 1\u202f200 rows, 0 steps") for *_, words in told)
    again = tables.load(out)
    assert again.choice == some.choice and not again.choice.stopped


def test_below_the_bound_nothing_changes(both):
    """The same bits, as long as there are no more rows."""
    *_, every = both
    same = tables.fit(grouped(), search_rows=1200, **OPTIONS)
    assert same.choice == every.choice and not same.choice.notes
    for own, other in zip(same.estimator.blocks_, every.estimator.blocks_):
        name = "means_" if own.kind == "numeric" else "rates_"
        assert np.array_equal(getattr(own.estimator, name), getattr(other.estimator, name))


def test_ctrl_c_in_the_fit_to_all_rows_keeps_the_searchs_model(tmp_path):
    def stop(done, total, words):
        if words.startswith("the choice on all"):
            raise KeyboardInterrupt

    found = tables.fit(grouped(), search_rows=300, progress=stop, **OPTIONS)
    assert found.choice.stopped and found.choice.final is None and found.n_components == 3
    assert "the fit of the choice to all of them was stopped" in found.choice.notes[-1]


def test_weights_of_the_rows_searched_count(tmp_path):
    """Rows of weight two are rows that stand twice."""
    frame = grouped(600).assign(w=np.where(np.arange(600) < 300, 2, 1))
    some = tables.fit(frame, weights="w", search_rows=200, **OPTIONS)
    every = tables.fit(frame, weights="w", search_rows=None, **OPTIONS)
    assert abs(some.choice.final.bic - every.choice.best.bic) < 0.05 and some.total == 900


def test_patterns_of_missing_values_are_those_of_a_sort_of_rows():
    absent_ND = np.random.default_rng(0).random((300, 11)) < 0.2
    patterns, inverse_N, counts = _patterns(absent_ND)
    expected = np.unique(absent_ND, axis=0, return_inverse=True, return_counts=True)
    assert np.array_equal(patterns, expected[0]) and np.array_equal(counts, expected[2])
    assert np.array_equal(inverse_N, expected[1].ravel())
    whole, all_one, count = _patterns(np.zeros((5, 3), bool))
    assert whole.shape == (1, 3) and not whole.any() and not all_one.any() and count.tolist() == [5]


@pytest.mark.parametrize("text", ["", "-5", "1e4", "every"])
def test_rows_to_search_are_a_number_or_all(text):
    assert parse_rows("all") is None and parse_rows("400") == 400
    with pytest.raises(MixwellError, match="--search-rows: expected a number of rows, or all, got"):
        parse_rows(text)


def test_a_number_of_rows_that_is_none_is_one_line():
    with pytest.raises(MixwellError, match="search_rows is 1; expected at least 2 rows"):
        tables.fit(grouped(), search_rows=1)
