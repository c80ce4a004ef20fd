"""A recipe fitted to the machine: budgets follow from what training costs there, and stay what they were."""

import json

import pytest

from mixwell.core.errors import MixwellError
from mixwell.run import engine, recipe, sizing
from mixwell.run.costs import Costs, Prediction
from tests.run import tiny

DENSE_S, MOE_S = 1e-3, 2.5e-3  # seconds a token
FIXED_S = 2.0  # all but the trainings
STEP = 4 * 32  # tokens
TEXT = 1e5  # tokens to train on


@pytest.fixture
def machine(monkeypatch):
    """A machine on which a mixture trains two and a half times slower than a dense model; returns its paces."""
    pace = {"model": DENSE_S, "dense": DENSE_S, "moe": MOE_S}
    monkeypatch.setattr(Costs, "training", lambda self, model, config: {
        "seconds_per_token": pace[model], "flops_per_token": 1.0, "peak_bytes": 0.0})
    monkeypatch.setattr(sizing, "_fixed_seconds", lambda *settings: FIXED_S)
    monkeypatch.setattr(Costs, "train_tokens", lambda self: TEXT)
    return pace


@pytest.fixture
def read(tmp_path):
    file = tiny.recipe_file(tmp_path / "recipe", tokens=20_000)

    def read(*changes):
        return recipe.read(file, changes)

    return read


def tokens(chosen):
    return {s.id: s.config.tokens for s in recipe.stages(chosen) if s.kind == "train"}


def test_a_recipe_that_leaves_nothing_open_stays_as_it_is(read, tmp_path):
    chosen = read()
    assert sizing.settle(chosen, tmp_path) == (chosen, None)


@pytest.mark.parametrize("minutes", [1.0, 3.0])
def test_the_budgets_are_scaled_so_that_the_run_takes_its_minutes(machine, read, tmp_path, minutes):
    settled, size = sizing.settle(read(f"minutes={minutes}"), tmp_path)
    found = tokens(settled)
    assert found == size.tokens and settled.minutes is None
    assert len(set(found.values())) == 1, "one factor for all"
    seconds = FIXED_S + found["dense"] * DENSE_S + found["dense-trained"] * DENSE_S + found["moe-trained"] * MOE_S
    assert size.seconds == pytest.approx(seconds)
    planned = sizing.SPARE * 60 * minutes
    assert planned - 0.1 * planned <= seconds <= planned
    assert all(count % STEP == 0 for count in found.values())


def test_equal_time_gives_the_faster_side_more_tokens(machine, read, tmp_path):
    settled, size = sizing.settle(read("stages.dense-trained.train={as_long_as: moe-trained}"), tmp_path)
    found = tokens(settled)
    assert found["moe-trained"] == 20_000 // STEP // 10 * 10 * STEP, "two digits of its steps are kept"
    assert found["dense-trained"] * DENSE_S == pytest.approx(20_000 * MOE_S, rel=0.1)
    assert size.minutes is None


def test_a_slow_part_beside_the_training_leaves_a_few_steps_and_says_so(machine, read, tmp_path):
    _, size = sizing.settle(read("minutes=0.02"), tmp_path)
    assert set(size.tokens.values()) == {sizing.LEAST_STEPS * STEP} and "all but the training takes 2 s" in size.limit


def test_a_text_is_not_read_more_often_than_it_teaches(machine, read, tmp_path):
    _, size = sizing.settle(read("minutes=600"), tmp_path)
    assert size.epochs == pytest.approx(sizing.FEW_EPOCHS, rel=0.1) and "more text would use the time" in size.limit


def test_what_was_kept_decides_though_the_machine_is_another_now(machine, read, tmp_path):
    chosen = read("minutes=1")
    first, size = sizing.settle(chosen, tmp_path)
    sizing.keep(chosen, size, tmp_path)
    machine["moe"] = 4 * MOE_S
    assert sizing.settle(chosen, tmp_path) == (first, size)
    assert sizing.settle(chosen, tmp_path / "elsewhere")[0] != first
    other = read("minutes=1", "seed=3")
    assert sizing.settle(other, tmp_path)[1] != size, "another recipe is fitted anew"


@pytest.mark.parametrize(("change", "words"), [
    ("stages.dense-trained.train={as_long_as: moe-traned}", "no stage 'moe-traned' trains.*moe-trained"),
    ("stages.dense-trained.train={as_long_as: moe}", "no stage 'moe' trains"),
    ("stages.dense-trained.train={as_long_as: dense-trained}", "has no budget of its own"),
    ("stages.dense-trained.train={as_long_as: dense, tokens: 5}", "stands beside tokens"),
    ("minutes=0", "expected a number above 0"),
])
def test_a_wrong_reference_is_told(machine, read, tmp_path, change, words):
    with pytest.raises(MixwellError, match=words):
        sizing.settle(read(change), tmp_path)


@pytest.mark.parametrize("tokens", ["{a: 1}", "[]", "soon", "true", "-3", "1" + 400 * "0"])
def test_a_budget_that_is_no_number_is_told(machine, read, tmp_path, tokens):
    with pytest.raises(MixwellError, match=r"stages\.dense\.train\.tokens is .*; expected a number at least 0"):
        sizing.settle(read("minutes=1", f"stages.dense.train={{tokens: {tokens}}}"), tmp_path)


def test_a_budget_in_seconds_cannot_be_scaled(machine, read, tmp_path):
    with pytest.raises(MixwellError, match="needs its budget in tokens"):
        sizing.settle(read("minutes=1", "stages.dense.train={seconds: 3}"), tmp_path)


def test_a_run_keeps_its_size_and_tells_it(machine, read, tmp_path):
    told = []

    class Told(engine.Silent):
        def fitted(self, about, size):
            told.append((about, size))

    chosen = read("minutes=0.001", "about=Whether it helps.")
    engine.run(chosen, tmp_path / "run", observer=Told())
    about, size = told[0]
    kept = json.loads((tmp_path / "run" / "size.json").read_text())
    assert about == "Whether it helps." and kept["tokens"] == size.tokens
    ledger = json.loads(next((tmp_path / "run" / "stages").glob("dense-trained-*/stage.json")).read_text())
    assert ledger["result"]["tokens"] == size.tokens["dense-trained"]
    assert all(p.cached for p in engine.plan(chosen, tmp_path / "run"))


def test_predictions_of_all_but_the_trainings_are_summed(read, monkeypatch):
    chosen = read()
    monkeypatch.setattr(Costs, "predict", lambda self, stage: Prediction(seconds=1.0))
    monkeypatch.setattr(Costs, "evaluation", lambda self, model, config: Prediction(seconds=0.25))
    stages = recipe.stages(chosen)
    trainings = {s.id for s in stages if s.kind == "train"}
    evaluated = {"dense", "moe", "moe-trained", "dense-trained", "moe-int8"}
    found = sizing._fixed_seconds(Costs(stages, 1), stages, chosen, trainings)
    assert found == len(stages) - len(trainings) + 0.25 * len(evaluated)
