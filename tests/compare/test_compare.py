"""Comparisons: what is varied, under which budget, what is shared, what goes on after a failure."""

import json
import statistics

import pytest

from mixwell import compare
from mixwell.compare import results, width
from mixwell.compare import view as views
from mixwell.compare.variants import label, parse_budget, parse_vary
from mixwell.core import disk
from mixwell.core.errors import MixwellError
from mixwell.parallel.pools import RayPool
from mixwell.run import engine, recipe
from tests.parallel.test_pools import Cluster
from tests.report.pages import text_of
from tests.run import tiny

ROUTERS = {"moe.router": ["top_k", "sinkhorn", {"method": "hash", "k": 2}]}  # hash lacks its vocab_size and must fail


class Told(engine.Silent):
    """Remembers the stages that were made."""

    def __init__(self):
        self.made, self.listed = [], []

    def planned(self, stages):
        self.listed = [p.stage.id for p in stages]

    def finished(self, planned, record):
        self.made.append(planned.stage.id)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """The tiny recipe."""
    return recipe.read(tiny.recipe_file(tmp_path_factory.mktemp("compare"), tokens=300))


@pytest.fixture(scope="module")
def ran(chosen, tmp_path_factory):
    """The folder of a comparison of three routers over three seeds, and what its observer was told."""
    out, told = tmp_path_factory.mktemp("out"), Told()
    compare.compare(chosen, ROUTERS, budget="tokens=600", seeds=3, out=out, observer=told)
    return out, told


def test_trials_spread_over_a_pool_give_the_same_numbers(chosen, ran, tmp_path):
    """Stages as tasks, each once; a variant that fails fails alone."""
    made = compare.plan(chosen, ROUTERS, budget="tokens=600", seeds=1, out=tmp_path, predict=False)
    told = Told()
    compare.run(made, told, pool=RayPool(Cluster(), 1, print))
    here, there = results.read(ran[0]), results.read(tmp_path)
    scores = [{one.name: one.scores[0] for one in found.results if one.trials} for found in (here, there)]
    assert scores[0] == scores[1] and set(scores[1]) == {"top_k", "sinkhorn"}
    assert len(told.made) == len(set(told.made))


def test_vary_is_read_as_yaml_values():
    texts = ["a.b=x,y", "lr=1e-3,2", "r={method: top_k, k: 1},{method: hash}", "betas=[0.9,0.95],[0.9,0.99]"]
    assert parse_vary(texts) == {
        "a.b": ["x", "y"], "lr": ["1e-3", 2], "r": [{"method": "top_k", "k": 1}, {"method": "hash"}],
        "betas": [[0.9, 0.95], [0.9, 0.99]]}
    assert parse_vary(["k=[1,2]"]) == {"k": [1, 2]}
    assert parse_vary(["k=2024-01-01,x"]) == {"k": ["2024-01-01", "x"]}, "what a recipe can hold"
    with pytest.raises(MixwellError, match="the values are not YAML"):
        parse_vary(["k=[1"])


def test_labels_are_values_or_keys_with_values():
    assert label({"moe.router": "top_k"}) == "top_k" and label({"x.y": {"method": "top_k", "k": 1}}) == "top_k(k=1)"
    assert label({"moe.router.k": 2, "moe.num_experts": 8, "x": True}) == "k=2, num_experts=8, x=true"
    assert label({"a.k": 1, "b.k": 2.5}) == "a.k=1, b.k=2.5"


def test_budget_takes_suffixes():
    assert parse_budget("tokens=1M") == {"tokens": 1e6}
    assert parse_budget("flops=2T,bytes=20M") == {"flops": 2e12, "bytes": 2e7}
    assert parse_budget("seconds=60") == {"seconds": 60}


def test_a_methods_bare_name_keeps_the_options_that_both_know(chosen):
    made = recipe.changed(chosen, {"moe.router": "expert_choice"})
    assert made.stages[1]["router"] == {"method": "expert_choice"} and chosen.stages[1]["router"]["method"] == "top_k"
    made = recipe.changed(chosen, {"stages.moe.router": "sinkhorn"})
    assert made.stages[1]["router"] == {"method": "sinkhorn", "k": 2}
    whole = {"method": "top_k", "k": 1}
    assert recipe.changed(chosen, {"moe.router": whole}).stages[1]["router"] == whole


def test_a_model_may_be_a_mixture_from_the_start(chosen):
    short = recipe.changed(chosen, {"model.num_experts": 4, "model.router": "sinkhorn", "model.shared_experts": 1})
    model = recipe.stages(short)[3].config.model(300)
    assert model.channel_mixer == {"method": "experts.layers.moe", "hidden_dim": 16, "num_experts": 4,
                                   "router": {"method": "sinkhorn"}, "shared_experts": 1}
    mixer = {"method": "moe", "num_experts": 4, "hidden_dim": 8, "router": {"method": "top_k", "k": 1}}
    long = recipe.changed(chosen, {"model.channel_mixer": mixer})
    other = recipe.changed(long, {"model.router": "sinkhorn"})
    assert other.model["channel_mixer"]["router"] == {"method": "sinkhorn", "k": 1} and "router" not in other.model
    with pytest.raises(MixwellError, match=r"'num_experts' stands twice"):
        recipe.stages(recipe.changed(long, {"model": {"channel_mixer": mixer, "num_experts": 8}}))


def test_a_key_of_a_stage_is_set_where_it_stands(chosen):
    made = recipe.changed(chosen, {"dense.tokens": "2k", "moe.num_experts": 8})
    assert made.stages[0]["train"] == {"tokens": 2000} and made.stages[1]["num_experts"] == 8


@pytest.mark.parametrize(("vary", "options", "part"), [
    ({}, {}, "expected what to vary"),
    ({"moe.num_experts": [2]}, {}, "expected two values or more"),
    ({"moe.num_experts": [2, 2]}, {}, "2 stands twice"),
    ({"moe.router": ["top_k", "sinkhrn"]}, {}, "Did you mean 'sinkhorn'?"),
    ({"moee.router": ["top_k", "sinkhorn"]}, {}, "Did you mean 'moe'?"),
    ({"moe.num_experts": [2, 4]}, {"baseline": "3"}, "no variant '3'"),
    ({"moe.num_experts": [2, 4]}, {"stage": "samples"}, "no stage with a model"),
    ({"moe.num_experts": [2, 4]}, {"stage": "dense"}, "does not reach it"),
    ({"samples.sample.temperature": [0.1, 0.2]}, {}, "does not reach it"),
    ({"data.held_out": [0.1, 0.2]}, {}, "differ in their data"),
    ({"seed": [1, 2]}, {}, "--seeds"),
    ({"moe.num_experts": [2, 4]}, {"seeds": 0}, "--seeds"),
    ({"moe.num_experts": [2, 4]}, {"budget": "token=1M"}, "Did you mean 'tokens'?"),
    ({"moe.num_experts": [2, 4]}, {"budget": {"tokens": "many"}}, "expected a number"),
    ({"moe.num_experts": [2, 4]}, {"budget": {"tokens": 0}}, "above 0"),
    ({"moe.num_experts": [2, 4]}, {"budget": "tokens=[1"}, "expected a number such as 1M, got '[1'"),
    ({"moe.num_experts": [2, 4]}, {"budget": "flops=1e999"}, "expected a number such as 1M, got inf"),
    ({"moe.num_experts": [2, 4]}, {"budget": "tokens=1k,flops=1G"}, "expected one of them"),
    ({"model.hidden_dim": [8, 16]}, {"budget": "bytes=1M"}, "drop one of them"),
    ({"moe.num_experts": [2, 4]}, {"budget": "bytes=1k"}, "still takes more than 1000 bytes"),
])
def test_a_mistake_is_told_before_anything_runs(chosen, tmp_path, vary, options, part):
    with pytest.raises(MixwellError, match=r"^[^\n]+$") as caught:
        compare.plan(chosen, vary, out=tmp_path / "o", predict=False, **options)
    assert part in str(caught.value) and not (tmp_path / "o").exists()


def test_plan_judges_the_last_training_and_leaves_the_rest_out(chosen, tmp_path):
    made = compare.plan(chosen, {"moe.num_experts": [2, 4]}, budget="tokens=600", seeds=[5, 9], out=tmp_path,
                        predict=False)
    assert made.stage == "moe-trained" and made.baseline == "2" and not list(tmp_path.iterdir())
    assert [(t.seed, t.variant) for t in made.trials] == [(5, "2"), (5, "4"), (9, "2"), (9, "4")]
    first, second = made.trials[0].todo, made.trials[1].todo
    assert [p.stage.id for p in first] == ["data", "tokenizer", "tokens", "model", "dense", "moe", "moe-trained"]
    assert [a.folder == b.folder for a, b in zip(first, second)] == [True] * 5 + [False] * 2, "shared stages are one"
    assert [p.stage.config.tokens for p in first if p.stage.kind == "train"] == [300, 600], "the last one is given it"
    third = made.trials[2].todo
    assert [a.folder == c.folder for a, c in zip(first, third)] == [True] * 3 + [False] * 4, "text draws nothing"
    assert [p.evaluated for p in first] == [True] * 6 + [False]


def test_a_stages_own_seed_moves_with_the_seeds(chosen, tmp_path):
    own = recipe.changed(chosen, {"stages.moe-trained.seed": 40})
    made = compare.plan(own, {"moe.num_experts": [2, 4]}, seeds=[0, 3], out=tmp_path, predict=False)
    assert [t.todo[-1].stage.seed for t in made.trials] == [40, 40, 43, 43]


def test_a_recipe_without_stages_is_trained_for_the_budget(chosen, tmp_path):
    bare = recipe.changed(chosen, {"stages": [], "model.num_experts": 4})
    made = compare.plan(bare, {"model.router": ["top_k", "expert_choice"]}, budget="flops=1M", seeds=1, out=tmp_path,
                        predict=False)
    assert made.stage == "trained" and made.trials[0].todo[-1].stage.config.flops == 1e6
    with pytest.raises(MixwellError, match="--budget tokens=1M"):
        compare.plan(bare, {"model.router": ["top_k", "expert_choice"]}, out=tmp_path, predict=False)


def test_bytes_set_the_width(chosen, tmp_path):
    made = compare.plan(chosen, {"moe.num_experts": [2, 4]}, budget="bytes=100k", seeds=1, out=tmp_path, predict=False)
    widths = [v.recipe.model["hidden_dim"] for v in made.variants]
    assert widths[0] > widths[1] and all(w % width.STEP == 0 for w in widths)
    for v in made.variants:
        wider = recipe.changed(v.recipe, {"model.hidden_dim": v.recipe.model["hidden_dim"] + width.STEP})
        assert width.weight_bytes(v.recipe, made.stage, 1) <= 100_000 < width.weight_bytes(wider, made.stage, 1)


def test_what_cannot_be_in_a_grid_is_kept_with_its_reason(chosen, tmp_path):
    vary = {"moe.num_experts": [2, 4], "moe.router.k": [2, 4]}
    made = compare.plan(chosen, vary, seeds=1, out=tmp_path, baseline="4,2")
    states = {t.variant: t.state for t in made.trials}
    assert states == {"num_experts=2, k=2": "waiting", "num_experts=2, k=4": "failed", "num_experts=4, k=2": "waiting",
                      "num_experts=4, k=4": "waiting"}
    assert made.baseline == "num_experts=4, k=2" and "choose 1 to 2" in made.trials[1].error


def test_every_stage_is_made_once(ran):
    out, told = ran
    assert len(told.made) == 3 + 3 * (2 + 2 * 2) == len(list((out / "stages").iterdir())) == len(set(told.made))
    assert told.made == told.listed
    assert {"data", "dense · seed 0", "moe-trained · sinkhorn · seed 2"} <= set(told.made)


def test_a_failed_variant_is_reported_and_the_rest_goes_on(ran):
    found = results.read(ran[0])
    by_name = {r.name: r for r in found.results}
    assert [len(r.trials) for r in found.results] == [3, 3, 0] and found.baseline == "top_k"
    assert by_name["sinkhorn"].changes == {"moe.router": {"method": "sinkhorn", "k": 2}}, "with the option that it kept"
    assert "vocab_size" in by_name["hash(k=2)"].failures[0]
    text = text_of((ran[0] / "report.html").read_text())
    assert "hash(k=2) failed (all seeds): stage moe" in text and "Budget of every variant and seed: 600 tokens." in text


def test_scores_and_sizes_are_those_of_the_stages(ran):
    found = {r.name: r for r in results.read(ran[0]).results}
    place = ran[0] / "variants" / "sinkhorn-seed1"
    folder = place / json.loads((place / "run.json").read_text())["stages"][-1]["folder"]
    assert found["sinkhorn"].scores[1] == json.loads((folder / "stage.json").read_text())["evaluation"]["mean"]
    size = sum(f.stat().st_size for f in (folder / "model").glob("*.safetensors"))
    assert found["sinkhorn"].trials[1].weights_bytes == size > 10_000
    gaps = [found["sinkhorn"].scores[s] - found["top_k"].scores[s] for s in range(3)]
    difference = results.read(ran[0]).differences["sinkhorn"].interval
    assert difference.mean == pytest.approx(statistics.fmean(gaps)) and difference.count == 3


def test_one_variant_has_a_run_of_its_own(ran):
    from mixwell.report import page as report

    page = report.build(ran[0] / "variants" / "top_k-seed0", ran[0] / "one.html")
    assert "moe-trained" in text_of(page.read_text())


def test_a_second_call_makes_nothing_and_a_new_variant_only_itself(chosen, ran):
    out = ran[0]
    before, ages = (out / "report.html").read_text(), {p: p.stat().st_mtime_ns for p in out.glob("stages/*/stage.json")}
    compare.compare(chosen, ROUTERS, budget="tokens=600", seeds=3, out=out)
    assert {p: p.stat().st_mtime_ns for p in out.glob("stages/*/stage.json")} == ages
    table = slice(before.index('id="table"'), before.index('id="curves"'))
    assert before[table] in (out / "report.html").read_text()
    vary = {"moe.router": ["top_k", "cosine"]}
    made = compare.plan(chosen, vary, budget="tokens=600", seeds=1, out=out, predict=False)
    left = [p.stage.id for p in made.stages() if not p.cached]
    assert left == ["moe · cosine · seed 0", "moe-trained · cosine · seed 0"]


def test_ctrl_c_keeps_what_is_there_and_says_what_is_missing(chosen, tmp_path, monkeypatch):
    class Stop(Told):
        def finished(self, planned, record):
            super().finished(planned, record)
            if planned.stage.id == "dense-trained · 1e-3 · seed 0":
                raise KeyboardInterrupt

    vary = {"stages.dense-trained.lr": ["1e-2", "1e-3"]}
    with pytest.raises(KeyboardInterrupt):
        compare.compare(chosen, vary, seeds=2, out=tmp_path, observer=Stop())
    text = text_of((tmp_path / "report.html").read_text())
    assert "This comparison is not finished: 1e-2, 1e-3" in text
    with monkeypatch.context() as ended:
        ended.setattr(disk.os, "getpid", lambda: 2**22 + 7)  # beyond all processes
        left = disk.scratch_beside(next(tmp_path.glob("stages/dense-*")) / "stage.json")
    left.write_text("half")
    told = Told()
    page = compare.compare(chosen, vary, seeds=2, out=tmp_path, observer=told)
    assert "not finished" not in text_of(page.read_text())
    assert [len(r.trials) for r in results.read(tmp_path).results] == [2, 2]
    assert not left.exists(), "what a kill left of a file that it wrote"


def test_our_own_faults_in_one_variant_do_not_end_the_others(chosen, tmp_path, monkeypatch):
    finish = engine.finish

    def broken(planned, chosen, todo, observer, **options):
        if planned.stage.id == "moe" and planned.stage.config.num_experts == 2:
            raise RuntimeError("no memory\nleft")
        return finish(planned, chosen, todo, observer, **options)

    monkeypatch.setattr(engine, "finish", broken)
    compare.compare(chosen, {"moe.num_experts": [2, 4]}, seeds=1, out=tmp_path)
    found = results.read(tmp_path)
    assert found.results[0].failures == {0: "RuntimeError: no memory left"} and len(found.results[1].trials) == 1
    assert views.lead(found).startswith("The baseline 2 has no result")
