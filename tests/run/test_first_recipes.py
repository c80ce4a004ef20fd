"""Recipes as people write them first: steps and epochs, text of a stage's own, warm starts, evaluation only."""

import json

import pytest

from mixwell.core.errors import MixwellError
from mixwell.lm.documents import Document
from mixwell.lm.model import load
from mixwell.lm.splitting import Split
from mixwell.run import engine, recipe
from mixwell.run.stages.text import kept_apart, read_splits

TRAIN = "{batch_size: 4, seq_len: 32, dtype: fp32}"


def written(texts, stages, more=""):
    """A recipe on the domain `left`."""
    path = texts.parent / "mine.yaml"
    path.write_text(f"""
data: {{domains: {{left: {texts}/left}}, held_out: 0.2}}
tokenizer: {{vocab_size: 300}}
model: {{dim: 16, num_layers: 1, num_heads: 2, hidden_dim: 16}}
train: {TRAIN}
evaluate: {{max_tokens: 200, batch_size: 4, seq_len: 32}}
threads: 1
{more}
stages: [{stages}]
""")
    return recipe.read(path)


def records(page):
    """Stage id -> its record."""
    run = json.loads((page.parent / "run.json").read_text())
    folders = {entry["id"]: page.parent / entry["folder"] for entry in run["stages"]}
    return {name: (folder, json.loads((folder / "stage.json").read_text())) for name, folder in folders.items()}


def test_steps_and_epochs_take_the_place_of_a_default_in_tokens(texts):
    chosen = written(texts, "{id: a, train: {steps: 3}}, {id: b, train: {epochs: 2}}, {id: c, train: }")
    chosen = recipe.changed(chosen, {"train.tokens": 5000})
    found = {stage.id: stage.config for stage in recipe.stages(chosen)}
    assert (found["a"].steps, found["a"].tokens) == (3, None)
    assert (found["b"].epochs, found["b"].tokens) == (2.0, None)
    assert (found["c"].tokens, found["c"].steps, found["c"].epochs) == (5000, None, None)


@pytest.mark.parametrize(("train", "told"), [
    ("{steps: 3, tokens: 5k}", "stages.a.train: tokens 5000.0 and steps 3 came; expected exactly one of tokens, steps"),
    ("{}", "stages.a.train: no budget came; expected exactly one of tokens, steps, epochs, flops, seconds"),
    ("{steps: 3, gradient_accumulation_steps: 2}", "Did you mean 'accumulate'?"),
    ("{steps: 3, learning_rate: 2}", "Did you mean 'lr'?"),
    ("{max_steps: 3}", "Did you mean 'steps'?"),
    ("{steps: 3, max_length: 2}", "Did you mean 'seq_len'?"),
    ("{steps: 3, freeze: 7}", "freeze: expected a list, got 7"),
])
def test_a_training_is_told_what_it_lacks(texts, train, told):
    with pytest.raises(MixwellError, match=r"^[^\n]+$") as caught:
        recipe.stages(written(texts, f"{{id: a, train: {train}}}"))
    assert told in str(caught.value)


@pytest.mark.parametrize(("key", "told"), [
    ("lr: 1e-3", "mine.yaml: unknown key 'lr'. Did you mean 'train.lr'?"),
    ("learning_rate: 1e-3", "Did you mean 'train.lr'?"),
    ("num_train_epochs: 3", "Did you mean 'train.epochs'?"),
    ("max_length: 512", "Did you mean 'train.seq_len'?"),
    ("held_out: 0.1", "Did you mean 'data.held_out'?"),
    ("stage: []", "Did you mean 'stages'?"),
])
def test_a_key_in_the_wrong_place_is_told_the_right_one(tmp_path, key, told):
    (tmp_path / "mine.yaml").write_text(key)
    with pytest.raises(MixwellError) as caught:
        recipe.read(tmp_path / "mine.yaml")
    assert told in str(caught.value)


def test_a_stage_with_text_of_its_own(texts, tmp_path):
    """Trained on `right` alone after `left`, in the same tokens, and evaluated on what `left` holds out."""
    chosen = written(texts, "{id: first, train: {steps: 4}}, {id: second, from: first, train: {epochs: 1}, "
                            f"data: {{domains: {{right: {texts}/right}}}}}}")
    found = records(engine.run(chosen, tmp_path / "out"))
    assert list(found) == ["data", "tokenizer", "tokens", "model", "first", "second-data", "second-tokens", "second"]
    first, second = (found[name][1] for name in ("first", "second"))
    assert set(first["result"]["ledger"]) == {"left"} and set(second["result"]["ledger"]) == {"right"}
    windows = (found["second-tokens"][1]["result"]["domains"]["right"]["train_tokens"] - 1) // 32
    assert second["result"]["tokens"] == windows // 4 * 128
    assert set(first["evaluation"]["bits_per_byte"]) == set(second["evaluation"]["bits_per_byte"]) == {"left"}
    assert second["inputs"] == ["first", "second-tokens", "tokenizer"]
    held = found["second-data"][1]["result"]["domains"]["right"]["held_share"]
    assert held == pytest.approx(0.2, abs=0.1), "as the run's own text is held out"


def test_what_the_run_holds_out_is_not_trained_on_by_a_stage(texts, tmp_path):
    every = f"{{domains: {{all: {texts}/left}}, held_out: 0.1}}"
    chosen = written(texts, f"{{id: second, train: {{steps: 2}}, data: {every}}}")
    found = records(engine.run(chosen, tmp_path / "out"))
    main = read_splits(found["data"][0])["left"]
    own = read_splits(found["second-data"][0])["all"]
    held = {document.identity for document in main.held}
    assert held and not held & {document.identity for document in own.train}
    notices = found["second-data"][1]["result"]["notices"]
    assert any("not trained on, since the run holds" in text for text in notices) or held <= {
        document.identity for document in own.held}


def test_documents_that_are_held_out_are_taken_from_the_side_to_train_on():
    a, b, c = (Document(name, name) for name in "abc")
    split, left = kept_apart(Split((a, b), (c,), ""), {"x": Split((c,), (b,), "")})
    assert split.train == (a,) and split.held == (c,) and left == 1
    whole, begun, ended = Document("d", "one two"), Document("d", "one ", "w"), Document("d", "two", "w")
    split, left = kept_apart(Split((begun,), (ended,), ""), {"x": Split((begun,), (ended,), "")})
    assert split.train == (begun,) and not left, "the same text cut at the same place"
    with pytest.raises(MixwellError, match="all of it is held out"):
        kept_apart(Split((whole,), (), ""), {"x": Split((), (whole,), "")})


def test_seeds_share_their_own_text(texts):
    chosen = written(texts, f"{{id: t, seeds: 2, train: {{steps: 2}}, data: {{domains: {{right: {texts}/right}}}}}}")
    found = {stage.id: stage for stage in recipe.stages(chosen)}
    assert list(found)[4:] == ["t-data", "t-tokens", "t-s0", "t-s1"]
    assert found["t-s0"].inputs["tokens"] == found["t-s1"].inputs["tokens"] == "t-tokens"


@pytest.mark.parametrize(("stages", "told"), [
    ("{id: a, train: {steps: 1}, data: other}", "stages.a.data: expected keys and values"),
    ("{id: a, train: {steps: 1}, data: {domain: {x: y}}}", "stages.a.data: unknown key 'domain'. Did you mean 'dom"),
    ("{id: a-s0, train: {steps: 1}, data: {max_bytes: 50}}, {id: a-s1, train: {steps: 1}, data: {max_bytes: 60}}",
     "the id 'a-data' is taken by a stage with other text"),
])
def test_own_text_that_is_none(texts, stages, told):
    with pytest.raises(MixwellError, match=r"^[^\n]+$") as caught:
        recipe.stages(written(texts, stages))
    assert told in str(caught.value)


def test_a_model_that_is_there_is_evaluated_alone_and_trained_on(texts, tmp_path):
    """Evaluation only, then a warm start from a run's stage with a part frozen."""
    chosen = written(texts, "{id: first, train: {steps: 4}}")
    before = engine.run(chosen, tmp_path / "one")
    name = f"{tmp_path}/one:first"
    only = recipe.changed(chosen, {"model": name, "tokenizer": None, "stages": []})
    found = records(engine.run(only, tmp_path / "two"))
    assert found["model"][1]["evaluation"]["mean"] == records(before)["first"][1]["evaluation"]["mean"]
    stage = {"id": "on", "train": {"steps": 2, "freeze": "model.embed*", "checkpointing": True, "accumulate": 2}}
    warm = recipe.changed(chosen, {"model": name, "tokenizer": None, "stages": [stage]})
    after = load(records(engine.run(warm, tmp_path / "three"))["on"][0] / "model").state_dict()
    start = load(records(before)["first"][0] / "model").state_dict()
    same = {key for key, value in after.items() if value.equal(start[key])}
    assert same == {"embed.weight"}
