"""What a run will take: from timed steps where the work pays for them, else from the machine's rate."""

import pytest

from mixwell.core import measured
from mixwell.kernels.rates import Rates
from mixwell.run import costs as module
from mixwell.run import recipe, timing
from mixwell.run.costs import Costs, shapes
from tests.run import tiny


@pytest.fixture
def stages(tmp_path):
    return recipe.stages(recipe.read(tiny.recipe_file(tmp_path)))


def fake_rate(monkeypatch, gflops):
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


def test_timing_takes_a_tenth_of_the_work_at_most(stages, monkeypatch):
    fake_rate(monkeypatch, 1.0)
    costs = Costs(stages, 1)
    trainings = [s for s in stages if s.kind == "train"]
    flops = sum(s.config.tokens * 3 * module._flops(costs.shapes[s.inputs["model"]], s.config.seq_len)
                for s in trainings)
    assert costs.planned_s == pytest.approx(flops / (module.TYPICAL * 1e9))
    shapes_trained = {(costs.shapes[s.inputs["model"]].key, s.config.batch_size) for s in trainings}
    assert len(shapes_trained) < len(trainings), "seeds and budgets of one shape share a measurement"
    spent = 2 * len(shapes_trained) * module.STEPS_TIMED * costs.patience_s
    assert spent == pytest.approx(module.TENTH * costs.planned_s)
    fake_rate(monkeypatch, 1e-6)
    assert Costs(stages, 1).patience_s == module.PATIENCE_S
    fake_rate(monkeypatch, 1e6)
    assert Costs(stages, 1, least_s=8.0).patience_s == pytest.approx(0.8 / (2 * len(shapes_trained) * 4))


def test_where_one_row_takes_too_long_the_rate_alone_tells(stages, monkeypatch):
    def refuse(*settings):
        raise AssertionError("timed a step that takes longer than the run")

    config = next(s for s in stages if s.kind == "train").config
    monkeypatch.setattr(timing, "training", refuse)
    fake_rate(monkeypatch, 1e-4)
    costs = Costs(stages, 1)
    monkeypatch.setattr(Costs, "planned_s", 0.0)
    found = costs.training("model", config)
    flops = 3 * module._flops(costs.shapes["model"], config.seq_len)
    assert found["flops_per_token"] == pytest.approx(flops)
    assert found["seconds_per_token"] == pytest.approx(flops / (module.TYPICAL * 1e5))


def test_every_kind_of_stage_has_a_prediction():
    assert set(module.PREDICTIONS) == set(module.KINDS)


def test_measurements_of_one_run_are_found_by_the_next(stages, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = next(s for s in stages if s.kind == "train").config
    first = Costs(stages, 1).training("model", config)
    monkeypatch.setattr(measured, "UNDISTURBED", -1.0)
    monkeypatch.setattr(timing, "training", lambda *settings: {"seconds_per_token": 0.0})
    assert Costs(stages, 1).training("model", config) == first
