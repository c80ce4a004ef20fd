"""A search before a comparison: who is trained how far, what is kept, what is said of it."""

import math

import pytest

from mixwell import compare
from mixwell.compare import results, searching
from mixwell.compare.searching import Search
from mixwell.core.errors import MixwellError
from mixwell.core.files import read_json
from mixwell.run import engine, recipe
from tests.run import tiny

RATES = {"train.lr": [1e-2, 3e-3, 1e-3, 1e-5]}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    path = tiny.recipe_with(folder, "stages:\n  - {id: dense, train: {tokens: 2304}}\n")
    return recipe.read(path)


@pytest.fixture(scope="module")
def ran(chosen, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "by-lr"
    page = compare.compare(chosen, RATES, seeds=2, out=out, search=Search(keep=2), baseline="0.001")
    return out, page


def losses(table):
    """Loss of an entrant at a share, and the calls that were made."""
    calls = []

    def loss(entrant, share):
        calls.append((entrant, round(share, 6)))
        return {"tokens": round(900 * share), "mean": table[entrant] + 1 - share}

    return loss, calls


def test_all_are_trained_for_a_ninth_and_the_leaders_to_the_end(ran):
    out, page = ran
    found = results.read(out)
    rows = {row["name"]: row for row in found.record["search"]["variants"]}
    shares = {name: round(row["share"], 4) for name, row in rows.items()}
    assert shares == {"0.01": 1, "0.003": 1, "0.001": 0.1111, "1e-05": 0.1111}
    assert rows["0.001"]["tokens"] == 256 and rows["0.01"]["tokens"] == 2304
    assert found.record["search"]["spent"] == 4 + 2 * 8
    assert [result.name for result in found.ranked] == ["0.01", "0.003", "0.001"], "the baseline stays"
    assert all(set(result.scores) == {0, 1} for result in found.results)
    html = page.read_text()
    assert 'id="search"' in html and "as much as 2.2 whole trainings" in html


def test_who_leads_ends_with_the_bits_of_a_training_that_never_stopped(chosen, ran, tmp_path):
    out, _ = ran
    plain = compare.compare(chosen, {"train.lr": [1e-2, 1e-3]}, seeds=1, out=tmp_path / "plain")
    whole = results.read(plain.parent)
    searched = results.read(out)
    for name in ("0.01", "0.001"):
        (own,) = (result for result in whole.results if result.name == name)
        (other,) = (result for result in searched.results if result.name == name)
        assert own.scores[0] == other.scores[0]


def test_a_search_that_is_there_trains_nothing_again(chosen, ran, monkeypatch):
    out, _ = ran
    before = read_json(out / searching.FILE)

    def never(*given, **more):
        raise AssertionError("trained again")

    monkeypatch.setattr(engine, "train_partly", never)
    compare.compare(chosen, RATES, seeds=2, out=out, search=Search(keep=2), baseline="0.001")
    assert read_json(out / searching.FILE) == before


def test_a_killed_search_goes_on(tmp_path):
    loss, calls = losses([3.0, 2.0, 1.0, 4.0])

    def killed(entrant, share):
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(entrant, share)

    entrants = {name: f"key-{name}" for name in "abcd"}
    with pytest.raises(KeyboardInterrupt):
        searching.search(Search(keep=1), entrants, killed, tmp_path / "s.json")
    found = searching.search(Search(keep=1), entrants, loss, tmp_path / "s.json")
    assert len(calls) == 5 and len(set(calls)) == 5
    assert searching.kept(found, 1, "a") == ["c", "a"]
    elsewhere = {name: f"other-{name}" for name in "abcd"}
    searching.search(Search(keep=1), elsewhere, loss, tmp_path / "s.json")
    assert len(calls) == 10, "other keys are other trainings"


def test_rising_bandits_drop_who_cannot_catch_up(tmp_path):
    loss, calls = losses([1.0, 3.0, 3.1])
    found = searching.search(Search(method="rising_bandits", keep=1), dict(zip("abc", "xyz")), loss, tmp_path / "s")
    reached = {row["name"]: row["share"] for row in found["variants"]}
    assert reached["a"] > 0.8 and reached["b"] < 0.5 and reached["c"] < 0.5
    assert found["spent"] == round(9 * sum(reached.values())) <= 14
    assert all(round(share * 9, 4) % 1 == 0 for _, share in calls)


def test_hyperband_takes_as_many_as_it_can_and_tells_who_was_not_tried(tmp_path):
    loss, _ = losses(list(range(7)))
    asked = Search(method="deepening_hyperband", keep=2)
    found = searching.search(asked, {name: name for name in "abcdefg"}, loss, tmp_path / "s")
    assert found["parts"] == 3
    tried = [row["name"] for row in found["variants"] if row["share"]]
    assert len(tried) == 5
    said = searching.statement({**found, "seed": 0, "kept": searching.kept(found, 2, "a")})
    untried = [name for name in "abcdefg" if name not in tried]
    assert f"Never tried: {' and '.join(untried)}." in said
    with pytest.raises(MixwellError, match="Hyperband needs 5 variants and has 3"):
        searching.search(asked, {name: name for name in "abc"}, loss, tmp_path / "t")


def test_a_variant_that_diverges_is_last(tmp_path):
    loss, _ = losses([1.0, 2.0])

    def breaking(entrant, share):
        if entrant == 0:
            raise MixwellError("diverged")
        return loss(entrant, share)

    found = searching.search(Search(keep=1), {"a": "a", "b": "b"}, breaking, tmp_path / "s")
    assert searching.kept(found, 1, "b") == ["b"]
    rows = dict(searching.rows({**found, "kept": ["b"]}))
    assert rows["a"][1][0] == "–" and rows["a"][2][0] == "no"
    assert read_json(tmp_path / "s")["a 1/9"]["error"] == "diverged"
    again = searching.search(Search(keep=1), {"a": "a", "b": "b"}, loss, tmp_path / "s")  # what broke it is mended
    assert searching.kept(again, 1, "a") == ["a"] and "error" not in read_json(tmp_path / "s")["a 1/9"]


@pytest.mark.parametrize(("options", "message"), [
    ({"method": "asynchronous_gp"}, "which need no features"), ({"keep": 0}, "keep is 0"),
    ({"parts": 1}, "parts is 1")])
def test_what_cannot_be_searched_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Search(**options)


def test_only_trainings_stop_early(tmp_path):
    made = recipe.read(tiny.recipe_file(tmp_path))
    with pytest.raises(MixwellError, match="moe is none; name one with --stage"):
        compare.compare(made, {"moe.num_experts": [2, 4]}, seeds=1, stage="moe", out=tmp_path / "out", search=Search())
    assert math.isinf(searching._rank({"share": 1, "mean": None})[1])
