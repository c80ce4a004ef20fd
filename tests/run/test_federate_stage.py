"""Federating as a stage of a recipe: the model, what was sent, what is planned, and what is refused."""

import pytest
import torch

import mixwell
from mixwell.core.errors import MixwellError
from mixwell.report.records import read_stage
from mixwell.run import engine, recipe
from mixwell.run.stages.federate import parse_federate
from tests.run.tiny import recipe_with, stage_folder

STAGES = """
stages:
  - {id: shared, federate: fed_avg, clients: 3, alpha: 1, seq_len: 16, max_windows: 8, rounds: 2, steps: 2, lr: 0.5,
     batch_size: 4, aggregation: {rule: median}}
  - {id: alone, from: shared, federate: {method: monna, clients: 4, seq_len: 16, rounds: 3, leave: 0.3, faulty: 1,
                                         max_windows: 8}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federated")
    chosen = recipe.read(recipe_with(folder, STAGES))
    engine.run(chosen, folder / "run")
    return chosen, folder / "run"


def test_a_stage_leaves_the_model_and_tells_what_was_sent(run):
    chosen, out = run
    record = read_stage(stage_folder(out, "shared"))
    model = mixwell.load(stage_folder(out, "shared") / "model")
    base = mixwell.load(next(out.glob("stages/model-????????/model")))
    size = sum(parameter.numel() for parameter in model.parameters()) * 4
    assert record.result["up_bytes"] == record.result["down_bytes"] == 2 * 3 * size
    assert record.result["rounds"] == 2 and record.result["answers"] == 6 and record.evaluation["bits_per_byte"]
    assert record.makes_model and not record.trains
    assert record.predicted["tokens"] == 2 * 3 * 2 * 4 * 16
    moved = [not torch.equal(before, after) for before, after in zip(base.parameters(), model.parameters())]
    assert any(moved)
    assert [line["stage"] for line in model.lineage] == ["build", "federate"]
    assert model.lineage[-1]["config"]["dealing"]["clients"] == 3
    assert all(planned.cached for planned in engine.plan(chosen, out))


def test_rounds_in_which_nobody_answers_are_told(tmp_path):
    stage = "{id: lone, federate: fed_avg, clients: 1, seq_len: 16, max_windows: 4, rounds: 1, steps: 1, leave: 0.999}"
    engine.run(recipe.read(recipe_with(tmp_path, f"stages: [{stage}]")), tmp_path / "run")
    found = read_stage(stage_folder(tmp_path / "run", "lone")).result
    assert (found["rounds"], found["rounds_counted"], found["answers"]) == (1, 0, 0)
    (notice,) = found["notices"]
    assert notice.startswith("In 1 round nobody answered")


def test_a_method_that_never_hears_enough_is_refused(tmp_path):
    """With four clients and one that may lie three have to answer; in these two rounds they never do."""
    world = "clients: 4, seq_len: 16, max_windows: 8, rounds: 2, leave: 0.6, faulty: 1"
    stage = f"{{id: few, federate: monna, {world}}}"
    with pytest.raises(MixwellError, match=r"answers? came where 1 may be lies; expected at least 3"):
        engine.run(recipe.read(recipe_with(tmp_path, f"stages: [{stage}]")), tmp_path / "run")


def test_as_many_tokens_are_planned_as_clients_are_asked():
    """0.28 of 25 clients are 7, though their product is above it in floating point."""
    world = {"clients": 25, "share": 0.28, "rounds": 2}
    learning = {"method": "fed_avg", "steps": 3, "batch_size": 4, "seq_len": 8}
    assert 0.28 * 25 > 7
    assert parse_federate({**world, **learning}, "f").tokens == 2 * 7 * 3 * 4 * 8


def test_rounds_with_too_few_answers_are_told(run):
    record = read_stage(stage_folder(run[1], "alone"))
    found = record.result
    assert (found["rounds"], found["rounds_counted"]) == (3, 1)
    (notice,) = found["notices"]
    assert notice.startswith("In 2 rounds nobody answered, or too few")


@pytest.mark.parametrize("entry, message", [
    ("{id: f, federate: {rounds: 3}}", "name a method, such as `federate: fed_avg`"),
    ("{id: f, federate: fed_gmm}", "fed_gmm is no method for a whole language model; expected one of fed_avg"),
    ("{id: f, federate: fed_avg, cliets: 3}", "unknown key 'cliets'. Did you mean 'clients'"),
    ("{id: f, federate: fed_avg, clients: 0}", "clients is 0"),
    ("{id: f, federate: fed_avg, rounds: -1}", "rounds is -1"),
    ("{id: f, federate: fed_avg, clients: 3, liars: 3}", "federate: liars is 3 of 3 clients; expected an honest one"),
    ("{id: f, federate: curriculum, first: 2}", "first=2.*expected at most 1")])
def test_what_cannot_be_is_told_before_anything_runs(tmp_path, entry, message):
    with pytest.raises(MixwellError, match=message):
        engine.plan(recipe.read(recipe_with(tmp_path, f"stages: [{entry}]")), tmp_path / "out")
