"""Adapters as stages of a recipe: trained beside a frozen base, merged, kept by themselves, and what is refused."""

from dataclasses import fields

import pytest
import torch

import mixwell
from mixwell.adapters import files
from mixwell.compare.variants import judged_stage, variants
from mixwell.core import registry
from mixwell.core.errors import MixwellError, TrainingError
from mixwell.lm import folder as folders
from mixwell.lm.data import TokenData
from mixwell.lm.training.freezing import check_trains
from mixwell.lm.training.loop import TrainResult
from mixwell.report.adapters import adapters
from mixwell.report.data import data
from mixwell.report.records import read_run, read_stage
from mixwell.run import engine, recipe, sizing
from mixwell.run.stages import Job, adapt
from mixwell.run.stages.convert import held_out
from mixwell.run.stages.train import Training
from tests.run.tiny import recipe_with, stage_folder

STAGES = """
stages:
  - {id: moe, convert: upcycle, num_experts: 4, router: {method: loss_free_bias, k: 2}}
  - {id: tuned, from: moe, adapt: lora, rank: 2, alpha: 4, tokens: 600, rates: [1e-5, 1e-2]}
  - {id: more, from: tuned, adapt: {method: ia3, steps: 2, targets: down_proj, trained: [sequence_norm],
                                         weights: {left: 3, right: 1}}}
  - {id: whole, from: tuned, train: {steps: 1}}
  - {id: halved, from: moe, adapt: half, steps: 2, rates: [2e-2]}
  - {id: turned, from: moe, adapt: {method: in_turn, targets: "layers.*"}, steps: 1, lr: 1e-2}
  - {id: small, from: moe, compress: int8}
  - {id: routed, from: moe, adapt: perft, num_adapters: 2, parameters: 1k, steps: 2, lr: 1e-2}
  - {id: beside, from: small, adapt: lora, merged: false, rank: 2, targets: [qkv, down_proj], steps: 2, lr: 1e-2}
  - {id: weighed, from: routed, evaluate: {max_tokens: 100}}
  - {id: said, from: beside, sample: {prompts: [ka], max_new_tokens: 4}}
  - {id: along, from: moe, adapt: eva, rank: 2, steps: 1, lr: 1e-2}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    chosen = recipe.read(recipe_with(folder, STAGES))
    engine.run(chosen, folder / "run")
    return chosen, folder / "run"


def test_a_stage_leaves_the_merged_model_and_the_adapter(run):
    chosen, out = run
    base, tuned, more = (mixwell.load(stage_folder(out, name) / "model") for name in ("moe", "tuned", "more"))
    record = read_stage(stage_folder(out, "tuned"))
    assert record.trains and record.evaluation["bits_per_byte"]
    assert record.result["merge_error"] < 1e-5 and record.result["receipt"]["kl_nats"] > 0
    tokens = torch.arange(12)[None]
    merged = tuned(tokens).logits_BTV
    there = files.load(stage_folder(out, "tuned") / adapt.FOLDER, base)
    assert there.num_parameters == record.result["trained_parameters"]
    torch.testing.assert_close(base(tokens).logits_BTV, merged)
    assert [line["stage"] for line in more.lineage] == ["build", "convert", "adapt", "adapt"]
    before, after = tuned.state_dict(), more.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"layers.0.sequence_norm.weight", "layers.0.channel_mixer.down_proj"}
    assert all(planned.cached for planned in engine.plan(chosen, out))


def test_parts_of_the_model_itself_are_trained(run):
    _, out = run
    base, halved, turned = (mixwell.load(stage_folder(out, name) / "model") for name in ("moe", "halved", "turned"))
    before, half, turn = base.state_dict(), halved.state_dict(), turned.state_dict()
    moved = {name for name in before if not torch.equal(before[name], half[name])}
    assert {"embed.weight", "head.weight"} < moved
    still = [name for name in before if torch.equal(before[name][:1], half[name][:1])]
    assert any("channel_mixer" in name for name in still) and any("sequence_mixer" in name for name in still)
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], turn[name])}
    assert moved == {"layers"}
    there = files.load(stage_folder(out, "halved") / adapt.FOLDER, base)
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(there.model(tokens).logits_BTV, halved(tokens).logits_BTV)


def test_a_start_along_the_runs_own_text_leaves_a_lora(run):
    _, out = run
    base, along = (mixwell.load(stage_folder(out, name) / "model") for name in ("moe", "along"))
    there = files.load(stage_folder(out, "along") / adapt.FOLDER, base)
    ranks = [adapter.A.shape[-2] for adapter in there.adapters.values()]
    assert there.method == "adapters.lora" and sum(ranks) == 2 * len(ranks)
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(there.model(tokens).logits_BTV, along(tokens).logits_BTV)


def test_the_report_plans_by_the_weights_given(run):
    _, out = run
    drawn = data(read_run(out))["drawn"]
    assert drawn["head"] == ["tuned", "more", "whole", "halved", "turned", "routed", "beside", "along"]
    assert drawn["by_size"] == ["tuned", "whole", "halved", "turned", "routed", "beside", "along"]
    plans = {row[0]: row[2][1] for row in drawn["rows"]}
    assert "planned 75" in plans["left"] and "planned 25" in plans["right"]


def test_every_training_in_a_row_draws_others(run):
    _, out = run
    models = [mixwell.load(stage_folder(out, name) / "model") for name in ("tuned", "more", "whole")]
    seeds = [model.lineage[-1]["draw_seed"] for model in models]
    assert seeds[0] != seeds[1] == seeds[2]


def test_what_a_router_remembers_is_frozen_with_the_base(run):
    _, out = run
    base, tuned = (mixwell.load(stage_folder(out, name) / "model").state_dict() for name in ("moe", "tuned"))
    assert torch.equal(base["layers.0.channel_mixer.router.bias"], tuned["layers.0.channel_mixer.router.bias"])


@pytest.mark.parametrize("stage, message", [
    ("{id: a, adapt: lore, tokens: 300}", "lore"),
    ("{id: a, adapt: {tokens: 300}}", "name a method, such as `adapt: lora`. Known: "),
    ("{id: a, adapt: lora, tokens: 300, rnk: 3}", "unknown key 'rnk'. Did you mean 'rank'.*targets, .*rank, .*tokens"),
    ("{id: a, adapt: ia3, tokens: 300, target: x}", "unknown key 'target'. Did you mean 'targets'"),
    ("{id: a, adapt: lora, tokens: 300, rank: 0}", "rank is 0"),
    ("{id: a, adapt: lora, tokens: 300, targets: 3}", "expected a pattern of names, or a list of them, got 3"),
    ("{id: a, adapt: lora, tokens: 300, weights: mixed}", "a share for each domain, not a stage's choice"),
    ("{id: a, adapt: lora, steps: 1, parameters: 0}", "expected a whole number above 0, such as 20k, got 0"),
    ("{id: a, adapt: protocols.raft, steps: 1}", "raft is a way to go about adapting and no adapter"),
    ("{id: a, adapt: mixlora, steps: 1, merged: true}", "depends on what comes in, so it cannot be merged"),
    ("{id: a, adapt: lora, steps: 1, lr: 1, rates: [2]}", "lr and rates came"),
    ("{id: a, adapt: lora, steps: 1, rates: [2, 2]}", r"expected different numbers above 0, .* got \[2, 2\]"),
    ("{id: a, adapt: lora, steps: 1, merged: 3}", "expected true or false, got 3"),
    ("{id: a, adapt: lora, train: {steps: 1}}", "an adapter's training stands beside `adapt`"),
    ("{id: a, adapt: lora}", "no budget came")])
def test_what_cannot_be_is_refused_before_anything_runs(stage, message, tmp_path):
    with pytest.raises(MixwellError, match=message):
        recipe.stages(recipe.read(recipe_with(tmp_path, f"stages:\n  - {stage}\n")))


@pytest.mark.parametrize("name", ["routed", "beside"])
def test_what_is_not_merged_stands_beside_the_base(name, run):
    _, out = run
    stage = stage_folder(out, name)
    record = read_stage(stage)
    assert record.result["merged"] is False and "merge_error" not in record.result
    tokens = torch.arange(12)[None]
    model = mixwell.load(stage / "model").eval()
    source = {"routed": "moe", "beside": "small"}[name]
    base = mixwell.load(stage_folder(out, source) / "model").eval()
    bare = base(tokens).logits_BTV
    there = files.load(stage / adapt.FOLDER, base)
    assert there.num_parameters == record.result["trained_parameters"]
    assert torch.equal(base(tokens).logits_BTV, model(tokens).logits_BTV)
    assert not torch.equal(bare, model(tokens).logits_BTV)
    assert record.result["receipt"]["max_logit_error"] > 0 and record.evaluation["bits_per_byte"]
    with pytest.raises(MixwellError, match="holds a model and an adapter beside it"):
        folders.read(stage / "model")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["{method: becotta, num_domains: 2, rank: 2}",
                                   "{method: kind, common: 4, tailors: 2, domains: 2, merged: false}"])
def test_what_goes_by_domain_is_weighed_with_the_domains_of_its_text(stage, tmp_path):
    chosen = recipe.read(recipe_with(tmp_path, f"stages:\n  - {{id: a, adapt: {stage}, steps: 2, lr: 1e-2}}\n"))
    engine.run(chosen, tmp_path / "run")
    record = read_stage(stage_folder(tmp_path / "run", "a"))
    weighed = record.result["receipt"]["loss_after_nats"]
    data = TokenData.open(stage_folder(tmp_path / "run", "tokens") / "shards")
    tokens = held_out(data)
    domains = [row % 2 for row in range(len(tokens))]
    model = mixwell.load(stage_folder(tmp_path / "run", "a") / "model").eval()
    found = model.loss(tokens[:, :-1], tokens[:, 1:], labels_B=torch.tensor(domains))
    assert weighed == pytest.approx(found.nats.item(), rel=1e-5)


@pytest.mark.slow
def test_a_merge_that_cannot_be_says_so_before_the_training(tmp_path):
    kept = "stages:\n  - {id: a, adapt: {method: kind, common: 4, tailors: 2, domains: 2}, steps: 2}\n"
    with pytest.raises(MixwellError, match=r"depends on the domain of the tokens.*`merged: false` keeps the adapter"):
        engine.run(recipe.read(recipe_with(tmp_path, kept)), tmp_path / "run")


def test_a_size_chooses_the_rank(run):
    _, out = run
    found = read_stage(stage_folder(out, "routed")).result["trained_parameters"]
    assert abs(found - 1000) <= 100
    weighed = read_stage(stage_folder(out, "weighed")).result["bits_per_byte"]
    evaluated = read_stage(stage_folder(out, "routed")).evaluation["bits_per_byte"]
    assert weighed.keys() == evaluated.keys()


def test_the_better_rate_is_kept(run):
    _, out = run
    result = read_stage(stage_folder(out, "tuned")).result
    first, second = result["rates"]
    assert (first["lr"], second["lr"], result["lr"]) == (1e-5, 1e-2, 1e-2)
    assert second["loss_nats"] < first["loss_nats"]


def test_a_rate_alone_is_told_and_one_that_diverged_as_well():
    done = TrainResult(None, [], {}, 0, 0.0, 2.0)
    one = adapt._Tried(config=Training(steps=1, lr=1e-2), folder=None, tensors={}, done=done, loss=3.0, damage=[])
    ended = {"lr": 1e-2, "loss_nats": 3.0, "seconds": 2.0}
    assert adapt._told_rates((1e-2,), [one]) == {"rates": [ended], "lr": 1e-2}
    assert adapt._told_rates((1e-2, 9.0), [one]) == {"rates": [ended, {"lr": 9.0, "loss_nats": None}], "lr": 1e-2}
    assert adapt._told_rates((), [one]) == {}


def test_the_report_holds_adapters_beside_each_other(run):
    _, out = run
    found = adapters(read_run(out))
    rows = {row[0]: dict(zip(found["head"], row)) for row in found["rows"]}
    before, after = (read_stage(stage_folder(out, name)).evaluation["bits_per_byte"] for name in ("tuned", "more"))
    assert {"tuned", "more", "routed", "beside"} <= set(rows) and rows["tuned"]["rate"] == "0.010"
    apart = [after[name] - before[name] for name in ("left", "right")]
    assert float(rows["more"]["change there"].replace("−", "-")) == pytest.approx(sum(apart) / 2, abs=6e-4)
    assert rows["more"]["elsewhere"] == "–"  # both domains were trained on
    assert int(rows["routed"]["trained"].replace("\u202f", "").replace(",", "")) == read_stage(
        stage_folder(out, "routed")).result["trained_parameters"]
    said = " ".join(found["sentences"])
    assert "unlike numbers of learning rates" in said and "On its text" in said
    assert rows["halved"]["rate"] == "0.020" and "On the rest" not in said  # no domain was left out


def test_a_rate_that_diverges_leaves_the_others(run, monkeypatch):
    chosen, _ = run
    stage = next(stage for stage in recipe.stages(chosen) if stage.id == "tuned")
    job = Job(stage=stage, folder=None, work=None, inputs={}, progress=print)
    monkeypatch.setattr(adapt, "_trained", _diverges)
    assert adapt._all_tried(job, stage.config, None, None) == [1e-5]
    monkeypatch.setattr(adapt, "_trained", lambda *given: _diverges(*given[:4], 1.0))
    with pytest.raises(TrainingError):
        adapt._all_tried(job, stage.config, None, None)


def _diverges(job, adaptation, before, data, rate):
    if rate > 1e-3:
        raise TrainingError("step 3: loss_nats is nan.")
    return rate


def test_minutes_and_comparisons_size_adaptations_too(run):
    chosen, _ = run
    entries = {"lora": {"id": "a", "adapt": "lora", "tokens": 600}, "below": {"id": "a", "adapt": {"method": "lora",
                                                                                               "steps": 3}}}
    assert sizing.budgeted(entries["lora"], {"tokens": 9}) == {"id": "a", "adapt": {"method": "lora", "tokens": 9}}
    assert sizing.budgeted(entries["below"], {"seconds": 1}) == {"id": "a", "adapt": {"method": "lora", "seconds": 1}}
    with pytest.raises(MixwellError, match="unknown key 'rank'"):  # no option of (IA)^3
        variants(chosen, {"tuned.adapt": ["lora", "ia3"]})
    found = variants(chosen, {"routed.num_adapters": [2, 3]})
    assert judged_stage(found, None, 1) == "routed"


def test_no_other_stage_leaves_an_adapter_out(tmp_path):
    kept = "stages:\n  - {id: a, adapt: lora, merged: false, steps: 1}\n  - {id: b, from: a, train: {steps: 1}}\n"
    with pytest.raises(MixwellError, match="'a' keeps its adapter beside the base, and only `evaluate` and `sample`"):
        recipe.stages(recipe.read(recipe_with(tmp_path, kept)))


def test_a_quantised_model_is_not_trained_in_part(run):
    _, out = run
    model = mixwell.load(stage_folder(out, "small") / "model")
    with pytest.raises(MixwellError, match="are quantised, and no gradient reaches them: norms and embeddings alone"):
        check_trains(model)
    files.load(stage_folder(out, "beside") / adapt.FOLDER, model)
    check_trains(model)


def test_defaults_of_trainings_hold_but_for_the_rate():
    own = adapt.with_defaults({"steps": 2}, {"lr": 1.0, "batch_size": 4, "tokens": 9, "freeze": "embed"})
    assert own == {"steps": 2, "batch_size": 4}
    assert adapt.with_defaults({}, {"tokens": 9}) == {"tokens": 9}


def test_no_method_shares_an_option_with_the_training():
    """Both stand side by side in a recipe's entry."""
    own = {"targets", "trained", "method", "parameters", "merged", "rates"}
    training = {option.name for option in fields(Training)} | own
    for entry in registry.family("adapters"):
        assert not training & {option.name for option in fields(entry.module().Config)}, entry.name
