"""Merges as stages of a recipe: order, base, cache, lineage, receipts, seeds, and what is refused."""

import pytest
import torch

import mixwell
from mixwell.core.errors import MixwellError
from mixwell.report.records import read_stage
from mixwell.run import engine, recipe
from mixwell.run.merging import CARD
from tests.run.tiny import recipe_with, stage_folder

STAGES = """
stages:
  - {id: dense, train: {tokens: 600}}
  - {id: a, from: dense, train: {tokens: 600}, seed: 1}
  - {id: b, from: dense, train: {tokens: 600}, seed: 2}
  - {id: both, merge: ties, from: [a, b], base: dense, density: 0.5}
  - {id: half, merge: linear, from: [a, b], weight: [1, 3], dtype: float64}
  - {id: further, from: both, train: {tokens: 300}}
"""


def test_a_merge_reads_its_models_in_order_and_is_trained_on(tmp_path):
    out = tmp_path / "run"
    chosen = recipe.read(recipe_with(tmp_path, STAGES))
    engine.run(chosen, out)
    a, b, half = (mixwell.load(stage_folder(out, name) / "model").state_dict() for name in ("a", "b", "half"))
    for name, tensor in half.items():
        torch.testing.assert_close(tensor, (a[name] + 3 * b[name]).double() / 4)
    record = read_stage(stage_folder(out, "both"))
    assert record.method == "merge.task_arithmetic" and set(record.result["receipts"]) == {"a", "b", "dense"}
    assert record.result["receipt"] == record.result["receipts"]["dense"] and record.evaluation["bits_per_byte"]
    lineage = mixwell.load(stage_folder(out, "further") / "model").lineage
    assert [line["stage"] for line in lineage] == ["build", "train", "merge", "train"]
    assert lineage[2]["base"] == "dense" and [line["id"] for line in lineage[2]["lineages"]["a"]][-1] == "a"
    assert 'merge: "ties"' in (stage_folder(out, "both") / "model" / CARD).read_text()
    again = engine.plan(chosen, out)
    assert all(planned.cached for planned in again)
    turned = recipe.changed(chosen, {"half.from": ["b", "a"], "both.density": 0.25})
    left = {planned.stage.id for planned in engine.plan(turned, out) if not planned.cached}
    assert left == {"half", "both", "further"}


def test_seeds_are_merged_seed_by_seed(tmp_path):
    path = recipe_with(tmp_path, """
stages:
  - {id: a, train: {tokens: 300}, seeds: 2}
  - {id: b, train: {tokens: 300}, seeds: 2}
  - {id: both, merge: slerp, from: [a, b], seeds: 2}
  - {id: tied, merge: ties, from: [b, a-s1], base: a, seeds: 2}
""")
    stages = {stage.id: stage for stage in recipe.stages(recipe.read(path))}
    roles = {role: source for role, source in stages["both-s1"].inputs.items() if role.startswith("model")}
    assert roles == {"model": "a-s1", "model 2": "b-s1"}
    assert stages["tied-s0"].inputs["base"] == "a-s0" and stages["tied-s0"].inputs["model 2"] == "a-s1"


@pytest.mark.parametrize(("entry", "words"), [
    ("{id: m, merge: tiez, from: [dense]}", "unknown merge 'tiez'"),
    ("{id: m, merge: ties, from: [dense, nope]}", "'nope' is no stage above this one"),
    ("{id: m, merge: ties, from: []}", "expected the models to merge"),
    ("{id: m, merge: ties, from: [dense], base: tokens}", "'tokens' makes no model"),
    ("{id: m, merge: ties, from: [dense], density: 3}", "density is 3"),
    ("{id: m, merge: ties, from: [dense], dtype: int8}", "dtype: 'int8' is not known"),
    ("{id: m, merge: ties, from: [dense], foo: 3}", "unknown key 'foo'"),
    ("{id: m, merge: {}, from: [dense]}", "name a method"),
    ("{id: m, from: dense, train: {tokens: 3}, base: dense}", "unknown key 'base'"),
])
def test_mistakes_come_to_light_before_anything_runs(tmp_path, entry, words):
    path = recipe_with(tmp_path, f"stages:\n  - {{id: dense, train: {{tokens: 300}}}}\n  - {entry}\n")
    with pytest.raises(MixwellError, match=words):
        recipe.stages(recipe.read(path))
