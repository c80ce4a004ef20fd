"""Recipes: what they mean, and one clear line for each way to write them wrong."""

from pathlib import Path

import pytest

from mixwell.core.errors import MixwellError
from mixwell.run import recipe, sizing
from mixwell.run.stages import KINDS


def written(tmp_path, text, overrides=()):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return recipe.read(path, overrides)


def resolved(tmp_path, text, overrides=()):
    return {stage.id: stage for stage in recipe.stages(written(tmp_path, text, overrides))}


def test_default_compares_a_mixture_with_dense_models_over_seeds():
    chosen = recipe.read()
    found = {s.id: s for s in recipe.stages(sizing.nominal(chosen))}
    assert chosen.minutes == 5
    for seed in range(3):
        moe, dense, longer = (found[f"{side}-s{seed}"] for side in ("moe", "dense", "dense-longer"))
        assert moe.seed == dense.seed == longer.seed == seed, "paired"
        assert moe.config == dense.config == longer.config, "but for the budget, which the machine decides"
        assert moe.inputs["model"] != dense.inputs["model"] == longer.inputs["model"]
    small = found["moe-int8"]
    assert small.method == "precision.int8" and small.inputs["model"] == found["samples"].inputs["model"] == "moe-s0"


def test_default_fits_on_a_screen():
    assert len(recipe.DEFAULT.read_text().splitlines()) <= 30


@pytest.mark.parametrize(("word", "number"), [("1.5M", 1.5e6), ("60k", 6e4), ("2G", 2e9), ("2e6", 2e6), (7000, 7e3)])
def test_counts_may_end_in_a_letter(tmp_path, word, number):
    stage = resolved(tmp_path, f"stages: [{{id: a, train: {{tokens: {word}}}}}]")["a"]
    assert stage.config.tokens == number


def test_flops_take_larger_letters_and_other_keys_none(tmp_path):
    found = resolved(tmp_path, "stages: [{id: a, train: {flops: 2T}}, {id: s, sample: {prompts: [4M]}}]")
    assert found["a"].config.flops == 2e12 and found["s"].config.prompts == ["4M"]


def test_everything_has_a_default(tmp_path):
    found = resolved(tmp_path, "seed: 3")
    assert list(found) == ["data", "tokenizer", "tokens", "model"]
    assert found["data"].config.domains == "standard-library" and found["model"].seed == 3
    assert written(tmp_path, "seed: 3").name == "mine"


def test_options_stand_below_the_verb_or_beside_it(tmp_path):
    beside = resolved(tmp_path, "stages: [{id: m, convert: upcycle, num_experts: 4}, {id: t, train: , tokens: 1M}]")
    below = resolved(tmp_path, "stages: [{id: m, convert: {method: upcycle, num_experts: 4}}, "
                               "{id: t, train: {tokens: 1M}}]")
    assert beside == below and beside["m"].config.num_experts == 4
    assert resolved(tmp_path, f"stages: [{{id: b, load: {tmp_path}}}]")["b"].config.path == str(tmp_path)


def test_defaults_of_train_reach_every_train_stage(tmp_path):
    text = "train: {lr: 5e-4, tokens: 1M}\nstages: [{id: a, train: {lr: 1e-3}}, {id: b, train: {seconds: 9}, from: a}]"
    found = resolved(tmp_path, text)
    assert (found["a"].config.lr, found["a"].config.tokens) == (1e-3, 1e6)
    assert (found["b"].config.lr, found["b"].config.tokens, found["b"].config.seconds) == (5e-4, None, 9.0)


def test_a_stage_may_have_its_own_seed_and_domain_weights(tmp_path):
    text = "seed: 1\nstages: [{id: a, seed: 5, train: {tokens: 1M, weights: {code: 0.7, tests: 0.3}}}]"
    stage = resolved(tmp_path, text)["a"]
    assert stage.seed == 5 and stage.config.weights == {"code": 0.7, "tests": 0.3}


def test_models_may_be_built_and_weighed_within_the_list(tmp_path):
    text = """
model: {dim: 32, num_layers: 2, num_heads: 4, hidden_dim: 48}
stages:
  - {id: wide, build: {dim: 64, channel_mixer: {method: experts.layers.moe, num_experts: 4, hidden_dim: 8}}}
  - {id: t, from: wide, train: {tokens: 1M}}
  - {id: e, from: t, evaluate: {max_tokens: 10k}}
"""
    found = resolved(tmp_path, text)
    assert found["model"].config.model(500).channel_mixer["hidden_dim"] == 48
    assert found["wide"].config.model(500).channel_mixer["num_experts"] == 4
    assert found["t"].inputs["model"] == "wide" and found["e"].config.max_tokens == 10_000


def test_overrides_reach_any_key(tmp_path):
    text = "train: {lr: 1e-3}\nstages: [{id: a, train: {tokens: 1M}}, {id: m, from: a, convert: upcycle}]"
    found = resolved(tmp_path, text, ["train.lr=2e-3", "stages.a.train.tokens=2M", "stages.m.router.k=1",
                                      "model.dim=64", "data.domains.wiki=texts"])
    assert found["a"].config.lr == 2e-3 and found["a"].config.tokens == 2e6
    assert found["m"].config.router == {"k": 1} and found["data"].config.domains == {"wiki": "texts"}


@pytest.mark.parametrize(("text", "parts"), [
    ("sed: 1", ["mine.yaml", "unknown key 'sed'", "Did you mean 'seed'?"]),
    ("data: {domain: x}", ["data", "unknown key 'domain'", "Did you mean 'domains'?"]),
    ("data: {held_out: 1.5}", ["data", "held_out is 1.5", "between 0 and 1"]),
    ("evaluate: {max_tokens: 0}", ["evaluate", "max_tokens is 0"]),
    ("tokenizer: {vocab_size: 100}", ["tokenizer", "vocab_size is 100", "257"]),
    ("model: {dim: 30, num_heads: 4}", ["model: ", "30", "4"]),
    ("model: {dimm: 30}", ["model", "unknown key 'dimm'", "Did you mean 'dim'?"]),
    ("threads: 0", ["threads: 0", "1 or more"]),
    ("name: a/b", ["'a/b'", "folder"]),
    ("stages: [{train: {tokens: 1M}}]", ["stages[0]", "id"]),
    ("stages: [{id: a, train: {tokens: 1M}}, {id: a, train: {tokens: 1M}}]", ["stages[1]", "'a' is taken"]),
    ("stages: [{id: tokens, train: {tokens: 1M}}]", ["'tokens' is taken"]),
    ("stages: [{id: a b, train: {tokens: 1M}}]", ["'a b'", "folder"]),
    ("stages: [{id: a, trian: {tokens: 1M}}]", ["stages.a", "'trian'", "Did you mean 'train'?"]),
    ("stages: [{id: a}]", ["stages.a", "one verb", "none"]),
    ("stages: [{id: a, train: {tokens: 1M}, convert: upcycle}]", ["stages.a", "train and convert"]),
    ("stages: [{id: a, train: {tokns: 1M}}]", ["stages.a.train", "unknown key 'tokns'", "Did you mean 'tokens'?"]),
    ("stages: [{id: a, train: {tokens: 1X}}]", ["'1X'", "k, M, G"]),
    ("stages: [{id: a, train: {tokens: many}}]", ["stages.a.train.tokens", "a number", "'many'"]),
    ("stages: [{id: a, train: {lr: 1e-3}}]", ["stages.a.train", "exactly one"]),
    ("stages: [{id: a, train: [1]}]", ["stages.a.train", "expected options, got [1]"]),
    ("stages: [{id: m, convert: 3}]", ["stages.m.convert", "expected options or a method, got 3"]),
    ("stages: [{id: a, train: {tokens: 1M}, tokens: 2M}]", ["stages.a", "'tokens' stands twice"]),
    ("stages: [{id: a, seed: x, train: {tokens: 1M}}]", ["stages.a.seed", "'x'"]),
    ("stages: [{id: m, convert: upcicle}]", ["stages.m.convert", "'upcicle'", "Did you mean 'upcycle'?"]),
    ("stages: [{id: m, convert: {num_experts: 4}}]", ["stages.m.convert", "name a method", "upcycle"]),
    ("stages: [{id: m, convert: upcycle, num_expert: 4}]", ["stages.m.convert", "Did you mean 'num_experts'?"]),
    ("stages: [{id: m, convert: int8}]", ["stages.m.convert", "unknown convert method 'int8'"]),
    ("stages: [{id: a, from: bse, train: {tokens: 1M}}]", ["stages.a.from", "'bse'", "Models: model"]),
    ("stages: [{id: s, sample: {}}, {id: a, from: s, train: {tokens: 1M}}]", ["stages.a.from", "makes no model"]),
    ("stages: [{id: b, from: model, build: {dim: 32}}]", ["stages.b.from", "starts from nothing"]),
    ("stages: [{id: s, sample: {top_p: 0}}]", ["stages.s.sample", "top_p is 0"]),
    ("seed: 1\nseed: 2", ["line 1", "'seed' stands twice"]),
    ("seed: [1", ["mine.yaml", "line 1", "',' or ']'"]),
    ("- 1", ["mine.yaml", "keys and values", "list"]),
    ("a: !!python/object/apply:os.getcwd []", ["mine.yaml", "python/object"]),
])
def test_a_wrong_recipe_is_told_in_one_line(tmp_path, text, parts):
    with pytest.raises(MixwellError) as caught:
        resolved(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


LONG = "x" * 5000


@pytest.mark.parametrize("entry", [
    f"id: a, from: {LONG}, train: {{}}", f"id: a, train: {{}}, seeds: {LONG}", f"id: a, side: [{LONG}], train: {{}}",
    f"id: a, seed: {LONG}, train: {{}}", f"id: a, train: {LONG}", f"id: a, train: {{}}, data: {LONG}",
    f"id: {LONG}, train: {{}}, data: 3", f"id: {LONG}, train: {{}}, seeds: x", f"id: {LONG}, seeds: 2, seed: 1",
    f"id: a, convert: {LONG}", f"id: a, {LONG}: 1", f"id: a, train: {{tokens: 1, {LONG}: 1}}"])
def test_what_came_is_repeated_in_part_alone(tmp_path, entry):
    with pytest.raises(MixwellError) as caught:
        resolved(tmp_path, f"stages: [{{{entry}}}]")
    assert len(str(caught.value)) < 700, caught.value


def test_a_long_override_is_repeated_in_part_alone(tmp_path):
    for change in (f"train.lr=[{LONG}", LONG):
        with pytest.raises(MixwellError) as caught:
            written(tmp_path, "seed: 1", [change])
        assert len(str(caught.value)) < 500, caught.value


@pytest.mark.parametrize(("change", "part"), [
    ("train.lr", "expected key=value"),
    ("stages.b.train.lr=1", "no stage 'b'"),
    ("seed.x=1", "seed.x"),
    ("train.lr=[1", "not YAML"),
])
def test_a_wrong_override_is_told_in_one_line(tmp_path, change, part):
    with pytest.raises(MixwellError, match=r"^[^\n]+$") as caught:
        written(tmp_path, "seed: 1\nstages: [{id: a, train: {tokens: 1M}}]", [change])
    assert part in str(caught.value)


def test_a_missing_folder_or_binary_recipe_is_told(tmp_path):
    for path, part in ((tmp_path / "none.yaml", "is not there"), (tmp_path, "is a folder")):
        with pytest.raises(MixwellError, match=part):
            recipe.read(path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MixwellError, match="is not text"):
        recipe.read(tmp_path / "b.yaml")


def test_every_kind_resolves_its_inputs():
    for kind in KINDS.values():
        assert set(kind.roles) <= {"model", "tokens", "tokenizer"}
        assert bool(kind.family) != bool(kind.parse)


def test_embedded_recipes_go_by_their_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe.read("black_mamba").name == recipe.read(recipe.DEFAULT.with_name("black_mamba.yaml")).name
    with pytest.raises(MixwellError, match=r"one of adapters, black_mamba, .*Did you mean 'black_mamba'"):
        recipe.read("blackmamba")
    (tmp_path / "black_mamba").write_text("name: own\nstages: []\n")
    assert recipe._embedded(Path("black_mamba")) == Path("black_mamba")


def test_sides_are_named_or_told_from_the_id(tmp_path):
    text = """stages:
  - {id: moe-s0, train: {tokens: 1k}}
  - {id: moe-s11, seed: 11, train: {tokens: 1k}}
  - {id: own, side: dense, train: {tokens: 1k}}
  - {id: moe-size, train: {tokens: 1k}}"""
    trained = [s for s in resolved(tmp_path, text).values() if s.kind == "train"]
    assert [s.side for s in trained] == ["moe", "moe", "dense", "moe-size"]
    with pytest.raises(MixwellError, match=r"stages\.own\.side: expected a name, got 3"):
        resolved(tmp_path, text.replace("side: dense", "side: 3"))


def test_a_side_decides_no_key(tmp_path):
    from mixwell.run.keys import stage_keys

    texts = [f"stages: [{{id: a, {side}train: {{tokens: 1k}}}}]" for side in ("", "side: b, ")]
    keys = [stage_keys(list(resolved(tmp_path, text).values()), 1)["a"] for text in texts]
    assert keys[0] == keys[1]


SEEDED = """
name: seeded
seed: 4
stages:
  - {id: start, seeds: 2, build: {dim: 16, num_layers: 1, num_heads: 2, hidden_dim: 16}}
  - {id: long, seeds: 2, from: start, train: {tokens: 9000}}
  - {id: same, seeds: [5, 7], from: start, train: {as_long_as: long}}
  - {id: small, from: long-s4, compress: int8}
"""


def test_an_entry_with_seeds_becomes_one_for_each(tmp_path):
    file = tmp_path / "seeded.yaml"
    file.write_text(SEEDED)
    chosen = recipe.read(file, ["stages.long.train.tokens=12k"])
    found = {entry["id"]: entry for entry in chosen.stages}
    assert list(found) == ["start-s4", "start-s5", "long-s4", "long-s5", "same-s5", "same-s7", "small"]
    assert [found[id]["seed"] for id in ("long-s4", "long-s5", "same-s7")] == [4, 5, 7]
    assert found["long-s5"]["from"] == "start-s5" and found["long-s5"]["train"] == {"tokens": 12000}
    assert found["same-s5"]["train"] == {"as_long_as": "long-s5"} and found["same-s5"]["from"] == "start-s5"
    assert found["same-s7"]["from"] == "start", "no entry of that seed: told when the stages are resolved"


def test_sides_of_seeded_entries_are_one(tmp_path):
    file = tmp_path / "seeded.yaml"
    file.write_text(SEEDED.replace("[5, 7]", "2").replace("as_long_as: long", "tokens: 9000"))
    stages = {stage.id: stage for stage in recipe.stages(recipe.read(file))}
    assert stages["long-s4"].side == stages["long-s5"].side == "long" != stages["same-s4"].side
    assert stages["long-s4"].seed == 4 and stages["long-s5"].inputs["model"] == "start-s5"


@pytest.mark.parametrize("seeds", ["0", "true", "[1, 1]", "[1.5]", "[]", "many", "[-1]"])
def test_wrong_seeds_are_told(tmp_path, seeds):
    file = tmp_path / "seeded.yaml"
    file.write_text(SEEDED.replace("seeds: 2, build", f"seeds: {seeds}, build"))
    with pytest.raises(MixwellError, match=r"stages.start.seeds: expected how many"):
        recipe.read(file)


def test_one_seed_beside_several_is_told(tmp_path):
    file = tmp_path / "seeded.yaml"
    file.write_text(SEEDED.replace("seeds: 2, build", "seeds: 2, seed: 1, build"))
    with pytest.raises(MixwellError, match="'seed' stands beside 'seeds'"):
        recipe.read(file)
