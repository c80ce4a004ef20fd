"""The mixing stage: proxies, the weights that they speak for, and the training that takes them."""

import json
import multiprocessing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mixwell.core import units
from mixwell.core.errors import MixwellError
from mixwell.data.predictor import rank_correlation
from mixwell.lm.data import TokenData
from mixwell.report import mixture as report_mixture
from mixwell.report.data import data
from mixwell.report.mixture import mixtures
from mixwell.report.records import read_run
from mixwell.run import engine
from mixwell.run import recipe as recipes
from mixwell.run.stages import mix, proxies
from tests.run.tiny import corpus

RECIPE = """
name: mixed
threads: 1
data: {{domains: {{left: {folder}/left, right: "{folder}/right/*.txt"}}, held_out: 0.2}}
tokenizer: {{vocab_size: 300}}
model: {{dim: 16, num_layers: 1, num_heads: 2, hidden_dim: 16}}
train: {{batch_size: 4, seq_len: 32, lr: 1e-2, dtype: fp32}}
evaluate: {{max_tokens: 200, batch_size: 4, seq_len: 32}}
stages:
  - id: chosen
    mix: {{proxies: 10, method: {method}, train: {{tokens: 512}}, eval_tokens: 400, steady: {steady}{more}}}
  - {{id: on-chosen, train: {{tokens: 1280, weights: chosen}}}}
"""


def recipe_in(folder, method="exponential_law", more="", steady=0):
    path = folder / "mixed.yaml"
    path.write_text(RECIPE.format(folder=folder, method=method, more=more, steady=steady))
    return recipes.read(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    corpus(folder)
    chosen = recipe_in(folder)
    out = folder / "out"
    engine.run(chosen, out)
    return chosen, out, read_run(out)


def stage(run, name):
    return next(one for one in run.stages if one.id == name)


def test_the_training_reads_the_domains_by_the_weights_found(made):
    _, _, run = made
    found, trained = stage(run, "chosen").result, stage(run, "on-chosen").result
    assert trained["weights"] == found["weights"]
    assert sum(found["weights"].values()) == pytest.approx(1)
    drawn = trained["ledger"]
    windows = 1280 / 32
    for name, weight in found["weights"].items():
        assert drawn[name] / sum(drawn.values()) == pytest.approx(weight, abs=1 / windows)


def test_every_proxy_is_a_row_of_a_table_that_mix_reads(made):
    import pandas

    from mixwell.data.runs import read_runs

    _, out, run = made
    folder = next((out / "stages").glob("chosen-*"))
    table = pandas.read_parquet(folder / mix.TABLE)
    runs = read_runs(table)
    assert runs.domains == ("left", "right")
    assert len(runs.weights_ND) == stage(run, "chosen").result["proxies"] == 10
    np.testing.assert_allclose(runs.weights_ND[1], [0.5, 0.5])
    # more of a domain's text, less of its loss
    for place in range(2):
        assert rank_correlation(runs.weights_ND[:, place], runs.losses_NM[:, place]) < -0.5


def test_the_choice_is_no_worse_in_prediction_than_the_natural_and_the_equal_mixture(made):
    _, _, run = made
    predicted = stage(run, "chosen").result["predicted"]
    means = {name: np.mean(list(one["losses"].values())) for name, one in predicted.items()}
    assert means["chosen"] <= min(means["natural"], means["equal"]) + 1e-3
    for one in predicted.values():
        assert all(one["low"][name] <= loss <= one["high"][name] for name, loss in one["losses"].items())


def test_a_finished_mixture_is_taken_as_it_is(made):
    chosen, out, _ = made
    assert all(one.cached for one in engine.plan(chosen, out, predict=False))


def test_a_killed_mixture_goes_on_with_the_proxies_that_are_done(made, tmp_path, monkeypatch):
    chosen, _, run = made
    calls = []
    proxy = proxies.proxy

    def killed(shared, number, weights):
        calls.append(number)
        if number == 3 and calls.count(3) == 1:
            raise MixwellError("killed")
        return proxy(shared, number, weights)

    monkeypatch.setattr(proxies, "proxy", killed)
    with pytest.raises(MixwellError, match="killed"):
        engine.run(chosen, tmp_path / "out")
    engine.run(chosen, tmp_path / "out")
    assert calls == [0, 1, 2, 3, *range(3, 10)]
    again = read_run(tmp_path / "out")
    assert stage(again, "chosen").result["weights"] == stage(run, "chosen").result["weights"]


def test_a_proxy_goes_on_from_no_damaged_state(made, tmp_path, monkeypatch):
    chosen, _, _ = made

    def killed(*given, **more):
        raise MixwellError("killed behind the training")

    monkeypatch.setattr(proxies, "evaluate", killed)
    for _ in range(2):
        with pytest.raises(MixwellError, match="killed behind the training"):
            engine.run(chosen, tmp_path / "out")
        (state,) = tmp_path.glob("out/stages/.work-chosen-*/proxy-0/state/state.json")
        state.write_bytes(state.read_bytes()[:-40])


def test_the_mixture_knows_how_long_the_training_is_that_takes_it(made):
    chosen, _, _ = made
    by_id = {one.id: one for one in recipes.stages(chosen)}
    assert by_id["chosen"].config.tokens == 1280
    assert by_id["on-chosen"].inputs["mixture"] == "chosen"


def test_proxies_read_so_little_that_they_repeat_it_as_often(made):
    chosen, out, _ = made
    folder = next((out / "stages").glob("tokens-*")) / "shards"
    whole = TokenData.open(folder)
    config = {one.id: one for one in recipes.stages(chosen)}["chosen"].config
    shared = proxies.Proxies(model=out, shards=folder, work=out, training=config.train, share=mix.read_share(config),
                             eval_tokens=10)
    fewer = shared.data()
    for name in whole.domains:
        whole_epochs = config.tokens / whole.count(name, "train")
        assert config.train.tokens / fewer.count(name, "train") == pytest.approx(whole_epochs, rel=0.01)
        assert len(fewer.tokens(name, "train")) == fewer.count(name, "train")
        assert fewer.count(name, "held") == whole.count(name, "held")
    assert mix.read_share(replace(config, same_repetition=False)) == mix.read_share(replace(config, tokens=None)) == 1


def test_proxies_side_by_side_come_to_the_same_bits(made, tmp_path, monkeypatch):
    fork = multiprocessing.get_context("fork")  # all is imported already: no process starts from nothing
    monkeypatch.setattr(proxies.multiprocessing, "get_context", lambda kind: fork)
    chosen, out, _ = made
    config = {one.id: one for one in recipes.stages(chosen)}["chosen"].config
    (shards,) = (out / "stages").glob("tokens-*/shards")
    (model,) = (out / "stages").glob("model-*/model")
    weights_ND = np.array([[0.3, 0.7], [0.9, 0.1]])
    told = []
    found = []
    for workers in (1, 2):
        shared = proxies.Proxies(model=model, shards=shards, work=tmp_path / str(workers), training=config.train,
                                 share=0.5, eval_tokens=200)
        found.append(proxies.losses(shared, weights_ND, workers, lambda share, words: told.append(share)))
    np.testing.assert_array_equal(*found)
    assert told == [0.5, 1.0] * 2 and found[0][0, 0] != found[0][1, 0]


def test_as_many_proxies_are_asked_for_as_the_predictor_and_its_folds_need(tmp_path):
    with pytest.raises(MixwellError, match="proxies is 10; expected at least 13"):
        recipes.stages(recipe_in(tmp_path, method="law_and_trees"))
    with pytest.raises(MixwellError, match="steady is -1"):
        recipes.stages(recipe_in(tmp_path, steady=-1))
    with pytest.raises(MixwellError, match="workers is -1"):
        recipes.stages(recipe_in(tmp_path, more=", workers: -1"))


def test_drawn_mixtures_are_shares_and_reach_corners_and_the_middle():
    natural_D = np.array([0.7, 0.2, 0.1])
    weights_ND = mix.draw(200, natural_D, np.random.default_rng(0))
    np.testing.assert_allclose(weights_ND.sum(1), 1)
    np.testing.assert_array_equal(weights_ND[0], natural_D)
    middle_D = (natural_D + 1 / 3) / 2
    np.testing.assert_allclose(weights_ND.mean(0), middle_D, atol=0.06)
    assert (weights_ND.max(0) > 0.7).all()


@pytest.mark.parametrize(("more", "expected"), [
    (", epochs: 0", "epochs is 0"), (", tokens: 1e9", "caps of all domains"),
    (", importance: {lefty: 1}", "unknown domain 'lefty'.*Did you mean 'left'")])
def test_what_cannot_be_chosen_is_told_in_a_line(tmp_path, more, expected):
    corpus(tmp_path)
    with pytest.raises(MixwellError, match=expected):
        engine.run(recipe_in(tmp_path, more=more), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("proxy-*"))  # nothing was trained in vain


def test_a_training_names_a_mixture_that_is_there(tmp_path):
    corpus(tmp_path)
    chosen = recipe_in(tmp_path)
    wrong = recipes.changed(chosen, {"on-chosen.weights": "choosen"})
    with pytest.raises(MixwellError, match="Did you mean 'chosen'"):
        recipes.stages(wrong)


def test_the_model_says_what_was_planned_and_what_was_drawn(made):
    _, _, run = made
    folder = stage(run, "on-chosen").model_folder
    lineage = json.loads((folder / "mixwell.json").read_text())["lineage"]
    assert lineage[-1]["weights"] == stage(run, "chosen").result["weights"]
    assert sum(lineage[-1]["ledger"].values()) == 1280


def test_only_trainings_on_the_same_text_are_set_against_the_prediction(made):
    _, _, run = made
    trained = stage(run, "on-chosen")
    plain = {name: value for name, value in trained.result.items() if name != "weights"}
    own_shares = replace(trained, id="plain", result=plain)
    tokens = replace(stage(run, "tokens"), id="other")
    inputs = tuple("other" if name == "tokens" else name for name in trained.inputs)
    elsewhere = replace(own_shares, id="elsewhere", inputs=inputs)
    tuned = replace(own_shares, id="tuned", kind="adapt")
    changed = replace(run, stages=(*run.stages, own_shares, tokens, elsewhere, tuned))
    (found,) = mixtures(changed)
    choice, own, _ = found["losses"]
    assert choice[3] == "on-chosen" and own[3] == "plain"
    (verdict,) = found["judged"]
    assert "0.00 % bits per byte from 1 seed, which says nothing" in verdict


def reached(gaps, size=100, name="x"):
    bits = {"a": 2.0, "b": 3.0}
    return [SimpleNamespace(seed=seed, id=name, result={"parameters": size},
                            evaluation={"mean": 2 * (1 + gap / 100), "bits_per_byte": bits})
            for seed, gap in enumerate(gaps)]


def test_models_of_several_sizes_are_each_judged_by_themselves():
    chosen = [*reached([0, 0.1], 100, "narrow"), *reached([-20, -20.1], 900, "wide")]
    natural = [*reached([-10, -10.1], 900), *reached([2, 2.1], 100)]  # the wide one first
    narrow, wide = report_mixture.judged({"chosen": chosen, "natural": natural, "equal": reached([5], 300)})
    assert "own shares (narrow): −1.96 %" in narrow and narrow.endswith("better.")
    assert "own shares (wide): −11.1" in wide and "paired over 2 seeds" in wide
    again = report_mixture.judged({"chosen": [*reached([0]), *reached([4])], "natural": reached([2]), "equal": []})
    assert len(again) == 1 and "−1.96 %" in again[0]


def test_all_trainings_on_a_mixture_count_in_its_mean(made):
    _, _, run = made
    trained = stage(run, "on-chosen")
    wide = replace(trained, id="wide", evaluation={**trained.evaluation, "mean": trained.evaluation["mean"] - 1})
    (found,) = mixtures(replace(run, stages=(*run.stages, wide)))
    choice, _, _ = found["losses"]
    assert choice[3:5] == ["on-chosen, wide", f"{trained.evaluation['mean'] - 0.5:.3f}"]


def test_a_choice_is_judged_over_seeds_against_both_other_mixtures():
    better, unclear = report_mixture.judged({"chosen": reached([0, 0.1, 0]), "natural": reached([2, 2.1, 2.2]),
                                             "equal": reached([0.1, -0.1, 0.2])})
    assert better.startswith("The choice against the text's own shares: −2.02 % bits per byte (−2.")
    assert better.endswith("better.")
    assert unclear.endswith("paired over 3 seeds): the seeds do not tell.")
    (worse,) = report_mixture.judged({"chosen": reached([3, 3.1]), "natural": [], "equal": reached([0, 0])})
    assert worse.endswith("worse.") and "equal shares: +3.05 %" in worse


def test_a_choice_that_is_equal_shares_is_judged_against_the_texts_own_alone():
    even = reached([0, 0.1])
    for seed, one in enumerate(even):
        one.id = f"on-equal-s{seed}"
    own, level = report_mixture.judged({"chosen": even, "natural": reached([2, 2.1]), "equal": list(even)})
    assert "own shares" in own and level == "The choice is equal shares: there is nothing to judge."
    assert report_mixture._named(even) == ["on-equal"]


def test_the_report_says_what_was_predicted_and_what_was_achieved(made):
    _, out, run = made
    (found,) = mixtures(run)
    predicted = stage(run, "chosen").result["predicted"]
    expected = {name: np.mean(list(one["losses"].values())) for name, one in predicted.items()}
    choice, own, equal = found["losses"]
    trained = stage(run, "on-chosen")
    change = 100 * (expected["chosen"] / expected["natural"] - 1)
    assert choice[1] == f"{expected['chosen']:.3f}" and choice[3] == "on-chosen"
    assert choice[2].lstrip("−+") == f"{abs(change):.1f} %" and choice[2].startswith("−") == (change < 0)
    assert choice[4] == f"{trained.evaluation['mean']:.3f}"
    assert own[2] == "0.0 %" and own[4] == equal[4] == "–"
    assert found["judged"] == [] and found["domains"][0][0] == "left"
    left = {name: one["losses"]["left"] for name, one in predicted.items()}
    assert found["domains"][0][3].lstrip("−+") == f"{abs(100 * (left['chosen'] / left['equal'] - 1)):.1f} %"
    page = (out / "report.html").read_text()
    assert 'id="mixture"' in page and choice[4] in page
    drawn = data(run)["drawn"]
    place = drawn["head"].index("on-chosen") + 1
    for row in drawn["rows"]:
        _, plan = row[place]
        weight = predicted["chosen"]["weights"][row[0]]
        assert f"planned {units.percent(weight)}" in plan
