"""What a run will take: from timed steps where the work pays for them, else from the machine's rate."""

import pytest

from mixwell.core import measured
from mixwell.kernels.rates import Rates
from mixwell.run import costs as module
from mixwell.run import recipe, rough, timing
from mixwell.run.costs import Costs, shapes
from tests.run import tiny


@pytest.fixture
def stages(tmp_path):
    return recipe.stages(recipe.read(tiny.recipe_file(tmp_path)))


def fake_rate(monkeypatch, gflops):
    monkeypatch.setattr(rough, "LAYER_S", 0.0)
    found = Rates(fp32_gflops=gflops, bf16_gflops=0.0, memory_gbps=1.0, threads=1)
    monkeypatch.setattr(module, "rates", lambda: found)


def test_a_batch_that_takes_too_long_is_scaled_from_fewer_rows(monkeypatch):
    rows, clock = [], [0.0]

    def step(count):
        rows.append(count)
        clock[0] += 0.25 * count

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    found = timing._steps(step, 100, 10, 7.0, 1.0)
    assert rows[-1] == 4
    assert found["seconds_per_token"] == 0.025 and found["flops_per_token"] == 7.0
    assert timing._steps(step, 3, 10, 7.0, 1.0)["seconds_per_token"] == 0.025 and rows[-1] == 3
    timing._steps(step, 100, 10, 7.0, 0.1)
    assert rows[-1] == 1


def test_a_short_step_is_repeated_as_long_as_patience_lasts_and_the_usual_one_counts(monkeypatch):
    clock, durations = [0.0], [0.5, 0.5, 0.1, 0.3, 0.1, 0.1, 0.9, 0.1]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def step(count):
        clock[0] += durations.pop(0)

    found = timing._steps(step, 1, 10, 7.0, 1.55)
    assert found["seconds_per_token"] == pytest.approx(0.01) and not durations, "warm, judge, then steps"


def test_the_first_steps_which_are_slow_do_not_count(monkeypatch):
    clock, durations = [0.0], [0.9, 0.5, 0.9, 0.8, 0.2, 0.2, 0.2, 0.2]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def step(count):
        clock[0] += durations.pop(0)

    found = timing._steps(step, 1, 10, 7.0, 2.45)
    assert found["seconds_per_token"] == pytest.approx(0.02) and not durations
    assert timing._settled([0.9, 0.8, 0.3, 0.2, 0.1, 0.2]) == pytest.approx(0.2)


def test_a_training_keeps_the_shape_and_a_conversion_makes_another(stages):
    found = shapes(stages, 300)
    assert found["dense"] is found["model"] and found["moe-trained"] is found["moe"]
    assert len({shape.key for shape in found.values()}) == 3
    moe = found["moe"].make()
    assert moe.arch["channel_mixers"][0]["num_experts"] == 4 if "channel_mixers" in moe.arch else moe.tensors
    assert found["moe"].make() is moe, "made once"
    assert {s.kind for s in stages if s.id not in found} == {"data", "tokenizer", "tokens", "sample"}


def planned(stages, pace):
    """Seconds of the trainings, evaluations and samples by hand: FLOPs over the rate."""
    shapes_ = shapes(stages, 300)
    flops = 0.0
    for stage in stages:
        if stage.kind == "train":
            per_token = 3 * rough.flops_per_token(shapes_[stage.inputs["model"]], stage.config.seq_len)
            flops += stage.config.tokens * per_token
    return flops / pace


def test_timing_takes_a_tenth_of_the_work_at_most(stages, monkeypatch):
    fake_rate(monkeypatch, 1.0)
    costs = Costs(stages, 1)
    work = [costs.rough.of(stage) for stage in stages]
    assert costs.planned_s == pytest.approx(sum(work))
    trained = sum(one for one, stage in zip(work, stages) if stage.kind == "train")
    assert trained == pytest.approx(planned(stages, rough.TYPICAL * 1e9))
    trainings = [s for s in stages if s.kind == "train"]
    shapes_trained = {(costs.shapes[s.inputs["model"]].key, s.config.batch_size) for s in trainings}
    assert len(shapes_trained) < len(trainings), "seeds and budgets of one shape share a measurement"
    assert costs.measurements == 2 * len(shapes_trained) + 4, "and a model made, two converted, one that writes"
    assert costs.measurements * costs.allowed_s == pytest.approx(module.TENTH * costs.planned_s)
    assert costs.patience_s == pytest.approx(costs.allowed_s / module.STEPS_TIMED)
    fake_rate(monkeypatch, 1e-6)
    assert Costs(stages, 1).patience_s == module.PATIENCE_S
    fake_rate(monkeypatch, 1e6)
    assert Costs(stages, 1, least_s=8.0).planned_s == 8.0


def test_adapters_and_proxies_count_as_trainings(tmp_path, monkeypatch):
    fake_rate(monkeypatch, 1.0)
    path = tiny.recipe_file(tmp_path)
    head, _, _ = path.read_text().partition("stages:")
    path.write_text(head + """stages:
  - {id: plain, from: model, train: {tokens: 600}}
  - {id: tuned, from: model, adapt: lora, rank: 2, tokens: 600, batch_size: 2}
  - {id: chosen, mix: {proxies: 13, train: {tokens: 600, batch_size: 8, accumulate: 2}}}
""")
    stages = {stage.id: stage for stage in recipe.stages(recipe.read(path))}
    costs = Costs(tuple(stages.values()), 1)
    assert costs.measurements == 2 * 3 + 1, "trained and read with, in three sizes of batch; a model made"
    took = {name: costs.rough.of(stages[name]) for name in ("plain", "tuned", "chosen")}
    assert took["chosen"] == pytest.approx(13 * took["plain"]) and took["tuned"] == pytest.approx(took["plain"])
    monkeypatch.setattr(rough, "LAYER_S", 1.0)
    assert costs.rough.of(stages["chosen"]) == pytest.approx(13 * costs.rough.of(stages["plain"])), "rows of 4 in both"


def test_evaluations_are_work_and_what_is_there_is_none(stages, monkeypatch):
    fake_rate(monkeypatch, 1.0)
    whole = Costs(stages, 1).planned_s
    weighed = recipe.EvaluateConfig(max_tokens=50, seq_len=32)
    costs = Costs(stages, 1, weighed=weighed)
    evaluated = [s.id for s in stages if module.KINDS[s.kind].evaluated]
    reading = sum(100 * rough.flops_per_token(costs.shapes[name], 32) for name in evaluated) / (rough.TYPICAL * 1e9)
    assert costs.planned_s == pytest.approx(whole + reading), "50 tokens of each of two domains"
    assert Costs(stages, 1, weighed=weighed, left=()).planned_s == 0.0
    only = Costs(stages, 1, left=("dense",))
    assert only.planned_s == pytest.approx(only.rough.training_s(next(s for s in stages if s.id == "dense")))


class Clock:
    """Stands for the timings: each takes as long as its work does on the fake machine, and adds up what it took."""

    def __init__(self, monkeypatch, costs):
        self.costs, self.spent, self.timed = costs, 0.0, []
        for name in ("training", "reading", "writing", "converting", "once"):
            monkeypatch.setattr(timing, name, getattr(self, name))
        monkeypatch.setattr(module, "kept", lambda what, measure, threads: measure())

    def _note(self, what, seconds):
        self.spent += seconds
        self.timed.append(what)
        return {"seconds": seconds, "seconds_per_token": 1.0, "flops_per_token": 1.0, "peak_bytes": 0.0}

    def _row_s(self, start, length):
        from mixwell.lm.model import LanguageModel

        return length * LanguageModel.from_checkpoint(start).flops_per_token(length) / self.costs.rough.pace.flops

    def training(self, start, rows, config, patience_s):
        row_s = 3 * self._row_s(start, config.seq_len)
        return self._note("training", max(module.LEAST_ROWS * row_s, module.STEPS_TIMED * patience_s))

    def reading(self, start, rows, length, patience_s):
        row_s = self._row_s(start, length)
        return self._note("reading", max(module.LEAST_ROWS * row_s, module.STEPS_TIMED * patience_s))

    def writing(self, start):
        return self._note("writing", module.WRITTEN * self.costs.rough.writing_s("moe-trained"))

    def converting(self, before, stage):
        return self._note("converting", self.costs.rough.converting_s(stage))

    def once(self, run):
        (stage,) = [s for s in self.costs.stages.values() if s.kind == "build"]
        return self._note("building", self.costs.rough.building_s(stage))


@pytest.mark.parametrize(("gflops", "tokens"), [(1.0, 1500), (1e-3, 1500), (1.0, 20_000_000), (1e3, 100), (1.0, 40)])
def test_all_that_is_timed_takes_a_tenth_of_the_work_at_most(tmp_path, monkeypatch, gflops, tokens):
    fake_rate(monkeypatch, gflops)
    chosen = recipe.read(tiny.recipe_file(tmp_path, tokens=tokens))
    stages = recipe.stages(chosen)
    costs = Costs(stages, 1, weighed=chosen.evaluate)
    monkeypatch.setattr(Costs, "tokenizing", lambda self: {
        "bytes_per_token": 3.0, "learn_seconds_per_byte": 0.0, "encode_seconds_per_byte": 0.0})
    clock = Clock(monkeypatch, costs)
    for stage in stages:
        costs.predict(stage)
        if module.KINDS[stage.kind].evaluated:
            costs.evaluation(stage.id, chosen.evaluate)
    assert clock.spent <= module.TENTH * costs.planned_s
    if tokens > 1e6:
        assert set(clock.timed) == {"training", "reading", "writing", "converting", "building"}


@pytest.mark.parametrize(("steps", "timed"), [(20, False), (20_000, True)])
def test_a_few_short_steps_are_not_worth_timing(tmp_path, monkeypatch, steps, timed):
    """On a machine for which the products are nothing, a step takes what its layers' calls take."""
    layer_s = rough.LAYER_S
    fake_rate(monkeypatch, 1e9)
    monkeypatch.setattr(rough, "LAYER_S", layer_s)
    stages = recipe.stages(recipe.read(tiny.recipe_file(tmp_path, tokens=128 * steps)))
    costs = Costs(stages, 1)
    clock = Clock(monkeypatch, costs)
    costs.training("model", next(s for s in stages if s.id == "dense").config)
    assert (clock.timed == ["training"]) == timed
    assert costs.rough.training_s(next(s for s in stages if s.id == "dense")) == pytest.approx(
        3 * steps * layer_s, rel=1e-3)


def test_two_passes_of_an_evaluation_are_not_worth_timing(tmp_path, monkeypatch):
    """A model that is there, evaluated on two windows: five would be read to time it."""
    def refuse(*settings):
        raise AssertionError("timed what takes longer than the work")

    for name in ("training", "reading", "writing", "converting", "once"):
        monkeypatch.setattr(timing, name, refuse)
    fake_rate(monkeypatch, 1e-3)
    tiny.corpus(tmp_path)
    written = {"name": "short", "data": {"domains": {"left": str(tmp_path / "left")}, "held_out": 0.2},
               "model": {"dim": 16, "num_layers": 1, "num_heads": 2}, "tokenizer": {"vocab_size": 300},
               "evaluate": {"max_tokens": 512, "seq_len": 256, "batch_size": 2},
               "stages": [{"id": "once", "train": {"steps": 1, "batch_size": 1, "seq_len": 32}}]}
    chosen = recipe.from_plain(written)
    stages = recipe.stages(chosen)
    costs = Costs(stages, 1, weighed=chosen.evaluate)
    costs.predict(stages[-1])
    found = costs.evaluation("once", chosen.evaluate)
    flops = rough.flops_per_token(costs.shapes["once"], 256)
    assert found.seconds == pytest.approx(found.tokens * flops / (rough.TYPICAL * 1e6))


def test_a_shape_is_sketched_without_numbers(stages):
    found = shapes(stages, 300)
    for name in ("model", "moe", "moe-int8"):
        real, sketch = found[name].make(), found[name].sketch()
        assert sketch.arch == real.arch
        assert {n: t.shape for n, t in sketch.tensors.items()} == {n: t.shape for n, t in real.tensors.items()}
        if name != "moe-int8":
            assert any(tensor.is_meta for tensor in sketch.tensors.values())


def test_a_conversion_that_asks_for_numbers_is_sketched_with_them(tmp_path):
    file = tiny.recipe_file(tmp_path)
    stages = recipe.stages(recipe.read(file, ["stages.moe.noise=0.1"]))
    found = shapes(stages, 300)["moe"]
    assert found.sketch().arch == found.make().arch and rough.weight_bytes(found) > 0


def test_own_text_and_epochs_are_predicted_from_the_stages_text(tmp_path, monkeypatch):
    fake_rate(monkeypatch, 1.0)
    monkeypatch.setattr(Costs, "tokenizing", lambda self: {
        "bytes_per_token": 2.0, "learn_seconds_per_byte": 1.0, "encode_seconds_per_byte": 1.0})
    tiny.corpus(tmp_path)
    written = {"name": "own", "data": {"domains": {"left": str(tmp_path / "left")}, "held_out": 0.2},
               "model": {"dim": 16, "num_layers": 1, "num_heads": 2}, "tokenizer": {"vocab_size": 300},
               "stages": [{"id": "second", "data": {"domains": {"right": str(tmp_path / "right")}},
                           "train": {"epochs": 3, "batch_size": 1, "seq_len": 8}}]}
    stages = recipe.stages(recipe.from_plain(written))
    costs = Costs(stages, 1)
    size = sum(file.stat().st_size for file in (tmp_path / "right").iterdir())
    found = {stage.id: costs.predict(stage) for stage in stages}
    assert found["second"].tokens == pytest.approx(3 * 0.8 * size / 2.0) and found["second"].epochs == pytest.approx(3)
    assert found["second-tokens"].tokens == pytest.approx(size / 2.0)


def test_every_kind_of_stage_has_a_prediction():
    assert set(module.PREDICTIONS) == set(module.KINDS)


def test_measurements_of_one_run_are_found_by_the_next(stages, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = next(s for s in stages if s.kind == "train").config
    first = Costs(stages, 1, least_s=100.0).training("model", config)
    monkeypatch.setattr(measured, "UNDISTURBED", -1.0)
    monkeypatch.setattr(timing, "training", lambda *settings: {"seconds_per_token": 0.0})
    assert Costs(stages, 1, least_s=100.0).training("model", config) == first
