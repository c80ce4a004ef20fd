"""Single stages: other starting points, what bad input is told, receipts on held-out text, one method alone."""

import dataclasses
import json
import shutil

import pytest
import torch

import mixwell
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.kernels import packing
from mixwell.kernels.probe import ROWS, choices
from mixwell.kernels.products import works
from mixwell.lm.config import ModelConfig
from mixwell.lm.data import write_shards
from mixwell.lm.documents import Document
from mixwell.lm.model import LanguageModel
from mixwell.lm.splitting import split_documents
from mixwell.lm.tokenizer import Tokenizer
from mixwell.run import engine, keys, recipe
from mixwell.run.stages import KINDS
from mixwell.run.stages.convert import held_out
from mixwell.run.stages.train import draw_seed

SHAPE = {"vocab_size": 300, "dim": 16, "num_layers": 1, "num_heads": 2,
         "channel_mixer": {"method": "experts.layers.swiglu", "hidden_dim": 16}}


@pytest.fixture
def folder(tmp_path, texts):
    """A Hugging Face folder of a small Llama with a tokenizer."""
    model = LanguageModel(from_dict(ModelConfig, SHAPE), generator(0))
    model.tokenizer = Tokenizer.train((p.read_text() for p in sorted(texts.glob("left/*"))), 300)
    model.save(tmp_path / "llama")
    return tmp_path / "llama"


def written(tmp_path, texts, rest):
    path = tmp_path / "mine.yaml"
    path.write_text(f"threads: 1\ndata: {{domains: {{left: {texts}/left}}, held_out: 0.2}}\n"
                    f"evaluate: {{max_tokens: 100, seq_len: 16}}\n{rest}")
    return recipe.read(path)


def record(out, stage):
    return json.loads(next(out.glob(f"stages/{stage}-????????/stage.json")).read_text())


def test_a_run_may_start_from_a_hugging_face_folder(tmp_path, texts, folder):
    chosen = written(tmp_path, texts, f"model: {folder}\nstages: [{{id: moe, convert: upcycle, num_experts: 2}}, "
                                      "{id: e, from: moe, evaluate: {max_tokens: 50, seq_len: 16}}]")
    engine.run(chosen, tmp_path / "out")
    model, moe = record(tmp_path / "out", "model"), record(tmp_path / "out", "moe")
    assert model["kind"] == "load" and model["result"]["path"] == str(folder)
    assert model["evaluation"]["mean"] == pytest.approx(moe["evaluation"]["mean"], abs=1e-4)
    assert record(tmp_path / "out", "tokenizer")["result"]["vocab_size"] == mixwell.load(folder).tokenizer.vocab_size
    assert record(tmp_path / "out", "e")["result"]["tokens"] == {"left": 49}
    assert not list((tmp_path / "out").glob("stages/model-*/*.safetensors")), "a model that is there is not copied"


def test_samples_from_packed_weights_say_the_same(tmp_path, texts, folder, monkeypatch):
    form = next((form for form in ("onednn packed", "fp16") if works(form, torch.float32)), None)
    if form is None:
        pytest.skip("this processor or build of torch has no packed products")
    chosen = written(tmp_path, texts, f"model: {folder}\nstages: [{{id: s, sample: {{prompts: [ka, ta], "
                                      "max_new_tokens: 6, temperature: 0}}]")
    forms = (form,) * len(ROWS)
    monkeypatch.setattr(packing, "choices", lambda: dataclasses.replace(choices(), exact=forms, half=forms))
    packed = []
    real = packing.prepack
    monkeypatch.setattr(packing, "prepack", lambda model: packed.append(real(model)) or packed[-1])
    found = []
    for least, out in ((13, "plain"), (12, "packed")):
        monkeypatch.setitem(packing.PAYS_AFTER, torch.float32, least)
        engine.run(chosen, tmp_path / out)
        found.append(record(tmp_path / out, "s")["result"]["samples"])
    assert len(packed) == 1 and packed[0] > 0
    assert found[0] == found[1] and all(sample["text"] for sample in found[0])


def test_a_model_without_a_tokenizer_takes_one_that_fits(tmp_path, texts, folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    chosen = written(tmp_path, texts, f"model: {folder}\n")
    with pytest.raises(MixwellError, match=r"llama holds no tokenizer.json.*give `tokenizer: \{vocab_size"):
        engine.plan(chosen, tmp_path / "out")
    engine.run(written(tmp_path, texts, f"model: {folder}\ntokenizer: {{vocab_size: 280}}\n"
                                        "stages: [{id: moe, convert: upcycle, num_experts: 2}]"), tmp_path / "out")
    assert mixwell.load(next((tmp_path / "out").glob("stages/moe-*/model"))).tokenizer.vocab_size == 280
    with pytest.raises(MixwellError, match=r"^stage model: the tokenizer has 320 ids, the model embeds 300"):
        engine.run(written(tmp_path, texts, f"model: {folder}\ntokenizer: {{vocab_size: 320}}"), tmp_path / "big")


def test_a_second_tokenizer_is_refused(tmp_path, texts, folder):
    with pytest.raises(MixwellError, match=r"^stage model: .* has a tokenizer of its own"):
        engine.run(written(tmp_path, texts, f"model: {folder}\ntokenizer: {{vocab_size: 280}}"), tmp_path / "out")


def test_a_tokenizer_may_be_read_from_a_folder(tmp_path, texts, folder):
    chosen = written(tmp_path, texts, f"tokenizer: {folder}\nmodel: {{dim: 16, num_layers: 1, num_heads: 2}}")
    engine.run(chosen, tmp_path / "out")
    assert record(tmp_path / "out", "model")["result"]["vocab_size"] == 300


def test_a_small_vocabulary_is_refused(tmp_path, texts):
    chosen = written(tmp_path, texts, "tokenizer: {vocab_size: 300}\nmodel: {dim: 16, num_heads: 2, vocab_size: 290}")
    with pytest.raises(MixwellError, match=r"model.vocab_size is 290, the tokenizer has 300 ids"):
        engine.run(chosen, tmp_path / "out")


def damage(folder, how):
    weights = folder / "model.safetensors"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "pickle":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    elif how == "disguised":
        weights.write_bytes(b"PK\x03\x04" + bytes(100))
    elif how == "gone":
        shutil.rmtree(folder)


@pytest.mark.parametrize(("how", "told"), [
    ("cut", "is cut short"), ("pickle", "a pickle, which can run code"), ("disguised", "is a pickle"),
    ("gone", "^model: .* is not a folder")])
def test_a_damaged_model_is_refused_before_anything_runs(tmp_path, texts, folder, how, told):
    damage(folder, how)
    with pytest.raises(MixwellError, match=told):
        engine.run(written(tmp_path, texts, f"model: {folder}\ntokenizer: {{vocab_size: 280}}"
                           if how == "gone" else f"model: {folder}"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("stages/*"))


def spoil(texts, how):
    if how == "missing":
        shutil.rmtree(texts / "left")
    elif how == "broken":
        (texts / "left" / "rows.jsonl").write_text("{")
    else:
        data = {"empty": b"", "binary": b"\x89PNG\0\0", "latin": "caf\xe9".encode("latin-1")}[how]
        for path in (texts / "left").iterdir():
            path.write_bytes(data)


@pytest.mark.parametrize(("how", "told"), [
    ("missing", "is not there"), ("empty", "no text"), ("binary", r"no text .*\(binary\)"),
    ("latin", r"no text .*\(not UTF-8\)"), ("broken", "rows.jsonl, line 1: not JSON")])
def test_bad_text_is_told_with_its_domain(tmp_path, texts, how, told):
    spoil(texts, how)
    with pytest.raises(MixwellError, match=rf"^data.domains.left: .*{told}"):
        engine.run(written(tmp_path, texts, ""), tmp_path / "out")
    assert not list((tmp_path / "out").glob("stages/*"))


@pytest.mark.parametrize(("rest", "told"), [
    ("stages: [{id: a, train: {tokens: 20, seq_len: 16}}]", "stage a: the budget pays for 20 tokens"),
    ("stages: [{id: m, convert: upcycle, num_experts: 2, router: {method: top_k, k: 3}}]", r"stage m: .*k = 3"),
    ("stages: [{id: a, train: {tokens: 1k, seq_len: 16, weights: {lft: 1}}}]", "no domain 'lft'. Did you mean 'left'"),
])
def test_what_cannot_be_is_told_with_its_stage(tmp_path, texts, rest, told):
    text = f"tokenizer: {{vocab_size: 280}}\nmodel: {{dim: 16, num_layers: 1, num_heads: 2}}\n{rest}"
    with pytest.raises(MixwellError, match=told):
        engine.run(written(tmp_path, texts, text), tmp_path / "out")
    assert not list((tmp_path / "out").glob("stages/[am]-*"))


def test_a_loss_that_explodes_is_told_and_keeps_the_stages_before(tmp_path, texts):
    text = ("tokenizer: {vocab_size: 280}\nmodel: {dim: 16, num_layers: 1, num_heads: 2}\n"
            "stages: [{id: a, train: {tokens: 4k, seq_len: 16, lr: 1e30, grad_clip: 0, dtype: fp32, warmup: 0}}]")
    with pytest.raises(MixwellError, match=r"^stage a: step \d+: \w+ is (nan|inf)"):
        engine.run(written(tmp_path, texts, text), tmp_path / "out")
    finished = {p.name.rpartition("-")[0] for p in (tmp_path / "out" / "stages").glob("[a-z]*")}
    assert finished == {"data", "tokenizer", "model", "tokens"}


def test_receipts_are_weighed_on_held_out_text_of_every_domain(tmp_path):
    tokenizer = Tokenizer.train(["ab cd"], 258)
    texts = {name: [" ".join(f"{name}{i}{j}" for j in range(40)) for i in range(5)] for name in "ab"}
    domains = {name: [Document(text[:4], text) for text in found] for name, found in texts.items()}
    splits = {name: split_documents(documents, 0.3) for name, documents in domains.items()}
    data = write_shards(tmp_path / "shards", splits, tokenizer)
    tokens = held_out(data, rows=6, length=20)
    assert tokens.shape == (6, 20) and tokens.dtype == torch.int64
    for row, name in enumerate("ababab"):
        stream = torch.tensor(data.tokens(name, "held").astype(int))
        assert any(torch.equal(stream[i:i + 20], tokens[row]) for i in range(len(stream) - 19))
    assert not torch.equal(tokens[0], tokens[2])


def test_draws_differ_by_seed_and_depth():
    assert len({draw_seed(seed, depth) for seed in range(3) for depth in range(3)}) == 9


def counted(monkeypatch, text, tmp_path):
    """Stage id -> names of the source files that its key covers."""
    seen = []
    monkeypatch.setattr(keys, "_digest_files", lambda files: {f.stem for f in files})
    monkeypatch.setattr(keys, "digest", lambda data: seen.append(data["code"]) or str(len(seen)))
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    stages = recipe.stages(recipe.read(path))
    keys.stage_keys(stages, 1)
    return dict(zip((s.id for s in stages), seen))


def test_the_source_is_looked_at_once_for_stages_that_reach_the_same(monkeypatch, tmp_path, texts):
    looked = []
    whole = keys._digest_files
    monkeypatch.setattr(keys, "_digest_files", lambda files: looked.append(1) or whole(files))
    head = f"data: {{domains: {{left: {texts}/left}}}}\nstages:\n"
    path = tmp_path / "many.yaml"
    for count in (3, 300):
        path.write_text(head + "".join(f"  - {{id: s{i}, train: {{tokens: {i + 1}k}}}}\n" for i in range(count)))
        looked.clear()
        found = keys.stage_keys(recipe.stages(recipe.read(path)), 1)
        assert len(set(found.values())) >= count
        assert len(looked) <= len({*keys.KINDS})


def test_a_key_covers_the_methods_that_a_stage_can_reach(monkeypatch, tmp_path, texts):
    found = counted(monkeypatch, f"data: {{domains: {{left: {texts}/left}}}}\nstages:\n"
                    "  - {id: m, convert: upcycle, router: {method: expert_choice}}\n"
                    "  - {id: t, from: m, train: {tokens: 1M}}\n  - {id: d, train: {tokens: 1M}}", tmp_path)
    assert {"upcycle", "expert_choice", "moe", "swiglu", "attention", "routing", "convert"} <= found["m"]
    assert {"expert_choice", "train", "optimizer"} <= found["t"], "a stage inherits what its inputs named"
    assert "expert_choice" not in found["d"] and "upcycle" not in found["d"]
    assert "hash" not in found["t"] | found["m"], "methods that nobody names do not count"
    assert {"tokenizer", "tokens"} <= found["tokenizer"] and "model" not in found["data"] - {"model"}
    for stage, files in found.items():
        assert {"declared", "tensors", "plain", "_parts"} <= files, f"what {stage} is read with counts"


def test_a_key_of_a_model_that_is_read_covers_all_methods(monkeypatch, tmp_path, texts, folder):
    found = counted(monkeypatch, f"model: {folder}\ndata: {{domains: {{left: {texts}/left}}}}", tmp_path)
    assert {"hash", "expert_choice", "int8"} <= found["model"]


def test_apply_weighs_and_writes(tmp_path, texts, folder):
    done = mixwell.apply("convert.upcycle", folder, out=tmp_path / "moe", num_experts=3, router={"k": 2})
    line = done.lineage[-1]
    assert line["receipt"]["kept"] and line["measured_on"] == "random tokens" and line["config"]["num_experts"] == 3
    again = mixwell.apply("int8", tmp_path / "moe", out=tmp_path / "int8", text=texts / "left" / "0.txt")
    assert [one["method"] for one in again.lineage] == ["convert.upcycle", "precision.int8"]
    assert mixwell.load(tmp_path / "int8").lineage[-1]["measured_on"] == str(texts / "left" / "0.txt")
    model = mixwell.load(folder)
    tokens = torch.randint(0, 300, (1, 12), generator=generator(0))
    torch.testing.assert_close(mixwell.apply("upcycle", model)(tokens).logits_BTV, model(tokens).logits_BTV)


@pytest.mark.parametrize(("name", "options", "told"), [
    ("convert.upcicle", {}, "Did you mean 'convert.upcycle'"),
    ("experts.routers.top_k", {}, "turns no checkpoint into another"),
    ("convert.upcycle", {"num_expert": 2}, "Did you mean 'num_experts'"),
    ("convert.upcycle", {"out": "."}, "is there already"),
])
def test_apply_refuses(tmp_path, folder, name, options, told):
    with pytest.raises(MixwellError, match=told):
        mixwell.apply(name, folder, **{"out": tmp_path / "new", **options})
    assert not (tmp_path / "new").exists()


def test_apply_keeps_no_result_that_breaks_its_promise(tmp_path, folder):
    model = mixwell.load(folder)
    with torch.no_grad():
        model.head.weight.mul_(50)
    with pytest.raises(MixwellError, match="broke its promise: kl_nats"):
        mixwell.apply("precision.int8", model, out=tmp_path / "new", max_kl_nats=1e-30)
    assert not (tmp_path / "new").exists()


def test_the_table_says_which_kinds_are_evaluated():
    assert {n for n, k in KINDS.items() if k.evaluated} == {
        "load", "train", "adapt", "federate", "convert", "compress", "merge"}
    assert {n for n, k in KINDS.items() if k.makes_model} == {
        "build", "load", "train", "adapt", "federate", "convert", "compress", "merge"}
