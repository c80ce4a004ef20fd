"""The engine: what is cached, what is redone, what stays after a failure, what a plan says."""

import errno
import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mixwell.core.errors import MixwellError, TrainingError
from mixwell.run import engine, facts, lock, recipe
from mixwell.run.costs import Costs
from mixwell.run.stages import KINDS, text
from tests.run import tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A recipe and the folder of its run; neither is to be changed."""
    folder = tmp_path_factory.mktemp("tiny")
    saved, os.environ["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME"), str(folder / "cache")
    file = tiny.recipe_file(folder / "recipe")
    engine.run(recipe.read(file), folder / "run")
    yield file, folder / "run"
    if saved is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = saved


def states(planned):
    """Ids of the stages that are to be run, and of those that are only to be evaluated."""
    return [p.stage.id for p in planned if not p.cached], [p.stage.id for p in planned if p.cached and not p.evaluated]


def plan(file, out, *overrides, **options):
    return engine.plan(recipe.read(file, overrides), out, predict=False, **options)


def record(out, stage):
    return json.loads(next(out.glob(f"stages/{stage}-????????/stage.json")).read_text())


def test_a_run_leaves_every_stage_whole_and_a_report(finished):
    out = finished[1]
    ids = ["data", "tokenizer", "tokens", "model",
           "dense", "moe", "moe-trained", "dense-trained", "moe-int8", "samples"]
    run = json.loads((out / "run.json").read_text())
    assert [s["id"] for s in run["stages"]] == ids
    assert sorted(p.name for p in (out / "stages").iterdir()) == sorted(Path(s["folder"]).name for s in run["stages"])
    assert run["recipe"]["seed"] == 0 and run["machine"]["threads"] == 1 and run["machine"]["memory_bytes"] > 1e8
    assert run["seconds"] > 0 and run["wall_seconds"] > 0
    assert "<html" in (out / "report.html").read_text()[:300].lower()
    for stage in run["stages"]:
        own = json.loads((out / stage["folder"] / "stage.json").read_text())
        assert own["key"] == stage["key"] and own["id"] == stage["id"] and own["seconds"] >= 0


def test_records_say_what_was_found(finished):
    out = finished[1]
    left = record(out, "data")["result"]["domains"]["left"]
    assert left["documents"] == 6 and left["train_bytes"] > left["held_bytes"] > 0
    assert 1 < record(out, "tokenizer")["result"]["bytes_per_token"]["right"] < 20
    dense = record(out, "dense")
    assert dense["result"]["tokens"] == 1408 == sum(dense["result"]["ledger"].values())  # 11 steps of 4 x 32
    assert dense["result"]["flops"] > 0 and dense["result"]["final_loss"] < 6
    assert set(dense["evaluation"]["bits_per_byte"]) == {"left", "right"}
    assert dense["predicted"]["tokens"] == 1500 and dense["actual"]["tokens"] == 1408
    assert dense["actual"]["peak_bytes"] > 1e8
    assert dense["predicted"]["peak_bytes"] is None, "too short a training to be timed"
    moe = record(out, "moe")
    assert moe["result"]["receipt"]["kept"] and moe["result"]["receipt"]["max_logit_error"] <= 1e-3
    assert moe["result"]["active_parameters"] < moe["result"]["parameters"]
    assert len(moe["evaluation"]["load"]["0"]["left"]) == 4
    assert moe["evaluation"]["mean"] == pytest.approx(dense["evaluation"]["mean"], abs=1e-4)
    sample = record(out, "samples")["result"]["samples"]
    assert len(sample) == 1 and sample[0]["prompt"] == "ka" and sample[0]["text"]


def test_siblings_see_the_same_batches_and_parents_others(finished):
    draws = {s: record(finished[1], s) for s in ("dense", "dense-trained", "moe-trained")}
    lineage = json.loads(next(finished[1].glob("stages/moe-trained-*/model/mixwell.json")).read_text())["lineage"]
    seeds = {line["id"]: line["draw_seed"] for line in lineage if line["stage"] == "train"}
    other = json.loads(next(finished[1].glob("stages/dense-trained-*/model/mixwell.json")).read_text())["lineage"]
    assert seeds["moe-trained"] == other[-1]["draw_seed"] != seeds["dense"]
    assert draws["moe-trained"]["result"]["ledger"] == draws["dense-trained"]["result"]["ledger"]


def test_lineage_goes_back_to_the_first_weights(finished):
    import mixwell

    model = mixwell.load(next(finished[1].glob("stages/moe-int8-*/model")))
    assert [line["id"] for line in model.lineage] == ["model", "dense", "moe", "moe-trained", "moe-int8"]
    assert model.lineage[2]["method"] == "convert.upcycle" and model.lineage[2]["receipt"]["kept"]
    assert model.lineage[3]["config"]["lr"] == 1e-2 and model.lineage[3]["versions"]["torch"]
    assert model.tokenizer.vocab_size == 300


def test_nothing_is_done_twice(copy):
    file, out = copy
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    engine.run(recipe.read(file), out)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    run = json.loads((out / "run.json").read_text())
    records = [json.loads((out / s["folder"] / "stage.json").read_text()) for s in run["stages"]]
    spent = sum(r["seconds"] + r.get("evaluation", {}).get("seconds", 0.0) for r in records)
    assert all(s["cached"] for s in run["stages"]) and run["seconds"] == spent > 0, "the work, not the look at it"


def test_text_that_has_not_changed_is_not_read_to_find_the_stages(tmp_path, monkeypatch):
    file = tiny.recipe_file(tmp_path / "recipe")
    monkeypatch.setattr(facts.time, "time_ns", lambda: 2**62)  # long after the files were written
    keys = [p.key for p in plan(file, tmp_path / "out")]

    def read(*_):
        raise AssertionError("the text was read")

    monkeypatch.setattr(text, "capped", read)
    text._collect.cache_clear()
    assert [p.key for p in plan(file, tmp_path / "out")] == keys
    (file.parent / "left" / "0.txt").write_text("ka lo mi")
    with pytest.raises(AssertionError, match="the text was read"):
        plan(file, tmp_path / "out")


@pytest.mark.parametrize(("override", "redone"), [
    ("stages.moe.num_experts=2", ["moe", "moe-trained", "moe-int8", "samples"]),
    ("stages.samples.sample.max_new_tokens=4", ["samples"]),
    ("train.lr=1e-3", ["dense", "moe", "moe-trained", "dense-trained", "moe-int8", "samples"]),
    ("threads=2", ["model", "dense", "moe", "moe-trained", "dense-trained", "moe-int8", "samples"]),
    ("stages.moe-trained.seed=1", ["moe-trained", "moe-int8", "samples"]),
    ("name=other", []),
])
def test_a_change_redoes_what_hangs_on_it_and_no_more(finished, override, redone):
    assert states(plan(*finished, override)) == (redone, [])


def test_other_evaluation_settings_only_evaluate_again(copy):
    file, out = copy
    evaluated = ["dense", "moe", "moe-trained", "dense-trained", "moe-int8"]
    assert states(plan(file, out, "evaluate.max_tokens=100")) == ([], evaluated)
    before = record(out, "dense")
    engine.run(recipe.read(file, ["evaluate.max_tokens=100"]), out)
    after = record(out, "dense")
    assert after["evaluation"]["tokens"]["left"] == 99 and before["evaluation"]["tokens"]["left"] == 199
    assert after["result"] == before["result"]


def test_text_that_changes_between_two_runs_is_seen(copy, tmp_path):
    file, out = copy
    shutil.copytree(file.parent, tmp_path / "texts")
    moved = [f"data.domains.left={tmp_path}/texts/left"]
    before = {p.stage.id: p.key for p in plan(file, out, *moved)}
    with open(tmp_path / "texts" / "left" / "0.txt", "a") as text:
        text.write("more words\n")
    after = {p.stage.id: p.key for p in plan(file, out, *moved)}
    assert all(before[id] != after[id] for id in before)


def test_from_redoes_a_stage_and_those_after_it(copy):
    file, out = copy
    assert states(plan(file, out, from_stage="dense-trained"))[0] == ["dense-trained", "moe-int8", "samples"]
    with pytest.raises(MixwellError, match=r"^--from: no stage 'dens'. Did you mean 'dense'\?"):
        plan(file, out, from_stage="dens")
    old = next(out.glob("stages/moe-int8-*/stage.json")).stat().st_mtime_ns
    engine.run(recipe.read(file), out, from_stage="moe-int8")
    assert next(out.glob("stages/moe-int8-*/stage.json")).stat().st_mtime_ns > old


def test_a_plan_predicts_and_writes_nothing(finished, tmp_path):
    planned = engine.plan(recipe.read(finished[0]), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    found = {p.stage.id: p for p in planned}
    assert not any(p.cached for p in planned)
    for id in ("dense", "moe-trained", "dense-trained"):
        assert found[id].predicted.tokens == 1500 and found[id].predicted.seconds > 0
        assert found[id].predicted_evaluation.tokens == 400
    actual = record(finished[1], "dense")["result"]
    assert found["dense"].predicted.flops / 1500 == pytest.approx(actual["flops"] / actual["tokens"])
    assert found["tokens"].predicted.tokens == pytest.approx(
        sum(sum(d.values()) for d in record(finished[1], "tokens")["result"]["domains"].values()), rel=0.2)


def test_a_plan_of_a_longer_training_tells_its_memory(finished, tmp_path):
    chosen = recipe.read(finished[0], ["stages.dense.train={tokens: 1M}"])
    found = next(p for p in engine.plan(chosen, tmp_path) if p.stage.id == "dense").predicted
    assert found.peak_bytes > 1e8


def test_a_budget_of_flops_or_seconds_is_predicted_in_tokens(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(Costs, "_worth", lambda self, seconds: True)

    def predicted(budget):
        chosen = recipe.read(finished[0], [f"stages.dense.train={budget}"])
        return next(p for p in engine.plan(chosen, tmp_path) if p.stage.id == "dense").predicted

    tokens = predicted("{tokens: 2000}")
    assert predicted(f"{{flops: {tokens.flops}}}").tokens == pytest.approx(2000)
    timed = predicted("{seconds: 3}")
    assert timed.seconds == 3 and timed.tokens == pytest.approx(3 * 2000 / tokens.seconds)


def test_a_step_that_no_memory_holds_is_refused_with_its_size(finished, tmp_path):
    chosen = recipe.read(finished[0], ["train.batch_size=1000000000", "stages.dense.train.tokens=1e13"])
    words = r"^stage dense: a step of 1000000000 rows of 32 tokens keeps 1\.02.TB at least"
    with pytest.raises(MixwellError, match=words):
        engine.plan(chosen, tmp_path / "out")


def test_measurements_are_kept(finished):
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "mixwell" / "measured.json"
    engine.plan(recipe.read(finished[0]), finished[1].parent / "nowhere")
    before = cache.read_text()
    engine.plan(recipe.read(finished[0]), finished[1].parent / "nowhere")
    assert cache.read_text() == before and len(json.loads(before)) >= 8


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("error", "kind", "told"), [
    (TrainingError("step 3: loss_nats is nan."), "train", "^stage dense: step 3: loss_nats is nan.$"),
    (FULL, "compress", "^stage moe-int8: no space left on the disk while writing .* run the same command again.$"),
    (KeyboardInterrupt(), "sample", "^$")])
def test_a_stage_that_fails_leaves_nothing_and_the_rest_stays(copy, monkeypatch, error, kind, told):
    file, out = copy
    shutil.rmtree(next(p for p in plan(file, out) if p.stage.kind == kind).folder)
    lost = states(plan(file, out))
    before = sorted(p.name for p in (out / "stages").iterdir())

    def fail(job):
        (job.folder / "half").write_text("half")
        raise error

    fail.__module__ = KINDS[kind].run.__module__  # so that the stage keeps its key
    monkeypatch.setitem(KINDS, kind, replace(KINDS[kind], run=fail))
    with pytest.raises(MixwellError if error is FULL else type(error), match=told):
        engine.run(recipe.read(file), out)
    assert sorted(p.name for p in (out / "stages").iterdir()) == before
    assert states(plan(file, out)) == lost and lost[0]


def test_a_broken_promise_is_an_error_and_the_stage_is_not_kept(finished, tmp_path):
    file, out = finished[0], tmp_path / "run"
    shutil.copytree(finished[1], out)
    with pytest.raises(MixwellError, match=r"^stage moe-int8: precision.int8 broke its promise: kl_nats .* not kept"):
        engine.run(recipe.read(file, ["stages.moe-int8.max_kl_nats=1e-30"]), out)
    assert len(list(out.glob("stages/moe-int8-*"))) == 1 and not list(out.glob("stages/.*"))


def hold(out, ready, release):
    with engine.locked(out):
        ready.set()
        release.wait(600)


def test_two_runs_on_one_folder_do_not_meet_and_a_dead_one_holds_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready, release))
    other.start()
    assert ready.wait(600)
    words = f"in use by process {other.pid}, for .* now; wait"
    with pytest.raises(MixwellError, match=words), engine.locked(tmp_path):
        pass
    other.kill()
    other.join()
    with engine.locked(tmp_path):
        assert lock.signed(tmp_path).process == os.getpid()


def test_what_a_kill_left_is_cleared_away(copy):
    file, out = copy
    (out / "stages" / ".dense-00000000.abc").mkdir()
    done = next(out.glob("stages/dense-????????")).name
    (out / "stages" / f".work-{done}").mkdir()
    (out / "stages" / ".work-other-11111111").mkdir()
    engine.run(recipe.read(file), out)
    assert [p.name for p in out.glob("stages/.*")] == [".work-other-11111111"]


@pytest.mark.parametrize(("again", "kept"), [(None, True), ("moe-trained", True), ("dense", False)])
def test_a_training_that_was_stopped_goes_on_unless_it_is_to_be_done_again(copy, monkeypatch, again, kept):
    file, out = copy
    stage = next(p for p in plan(file, out) if p.stage.id == "dense")
    shutil.rmtree(stage.folder)
    work = out / "stages" / f".work-{stage.folder.name}"
    work.mkdir()
    (work / "part").touch()
    seen = []

    def stop(job):
        seen.append((job.work / "part").exists())
        raise KeyboardInterrupt

    stop.__module__ = KINDS["train"].run.__module__
    monkeypatch.setitem(KINDS, "train", replace(KINDS["train"], run=stop))
    with pytest.raises(KeyboardInterrupt):
        engine.run(recipe.read(file), out, from_stage=again)
    assert seen == [kept]
