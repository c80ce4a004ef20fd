"""Model folders: what comes back is what was written, and what is not understood is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import mixwell
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.lm import folder as folders
from mixwell.lm import weights
from mixwell.lm.config import ModelConfig
from mixwell.lm.hf.writing import comparable, model_type_of
from mixwell.lm.model import LanguageModel

DENSE = {"method": "swiglu", "hidden_dim": 12}
SPARSE = {"method": "moe", "num_experts": 4, "hidden_dim": 6}
TOKENS = torch.tensor([[3, 1, 4, 1, 5]])


def build(dtype=torch.float32, **options) -> LanguageModel:
    base = {"vocab_size": 23, "dim": 8, "num_layers": 2, "num_heads": 2, "channel_mixer": SPARSE}
    model = LanguageModel(from_dict(ModelConfig, base | options), torch.Generator().manual_seed(0), dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.ndim > 1 else 1)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits_BTV


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("options", "model_type"), [
    ({"channel_mixer": DENSE}, "llama"),
    ({"channel_mixer": DENSE, "num_heads": 3, "head_dim": 4}, "mistral"),  # Llama wants heads that divide the width
    ({"channel_mixer": DENSE, "sequence_mixer": {"method": "attention", "sliding_window": 3}}, "mistral"),
    ({"channel_mixer": DENSE, "sequence_mixer": {"method": "attention", "qk_norm": "head"}}, "qwen3"),
    ({}, "mixtral"),
    ({"channel_mixer": [DENSE, SPARSE], "sequence_mixer": {"method": "attention", "qk_norm": "head"}}, "qwen3_moe"),
    ({"sequence_mixer": {"method": "attention", "qk_norm": "full"}}, "olmoe"),
    ({"channel_mixer": [DENSE, SPARSE]}, "mixwell"),
    ({"channel_mixer": SPARSE | {"shared_experts": 1}}, "mixwell"),
    ({"channel_mixer": SPARSE | {"router": {"method": "top_k", "scores": "sigmoid"}}}, "mixwell"),
    ({"channel_mixer": SPARSE | {"router": {"method": "top_k", "k": 1}}}, "mixwell"),
    ({"channel_mixer": SPARSE | {"router": {"method": "cosine"}}}, "mixwell"),
    ({"channel_mixer": SPARSE | {"router": {"method": "rank_k"}}}, "mixwell"),
])
def test_a_folder_brings_the_model_back(options, model_type, tmp_path):
    model = build(**options)
    folder = model.save(tmp_path / "model")
    assert config_of(folder)["model_type"] == model_type
    assert ("mixwell.load" in config_of(folder).get("note", "")) == (model_type == "mixwell")
    again = mixwell.load(folder).eval()
    assert torch.equal(logits(again), logits(model))
    assert comparable(to_dict(again.config)) == comparable(to_dict(model.config))
    assert {n for n, _ in again.named_parameters()} == {n for n, _ in model.named_parameters()}


def test_what_training_added_survives_a_second_save(tmp_path):
    model = build(channel_mixer=SPARSE | {"balance": {"switch": 0.5, "z_loss": 0.25}})
    model.lineage = ({"stage": "train", "tokens": 5},)
    model.files = {"tokenizer_config.json": b'{"a": 1}', "generation_config.json": b'{"temperature": 0.5}'}
    first = model.save(tmp_path / "one")
    second = mixwell.load(first).save(tmp_path / "two")
    again = folders.read(second)
    assert again.arch["channel_mixer"]["balance"] == {"switch": 0.5, "z_loss": 0.25}
    assert again.lineage == ({"stage": "train", "tokens": 5},)
    assert (second / "tokenizer_config.json").read_bytes() == b'{"a": 1}'
    assert (second / "generation_config.json").read_bytes() == b'{"temperature": 0.5}'
    assert json.loads((second / "mixwell.json").read_text())["mixwell"] == mixwell.__version__
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_config_json_outranks_the_record(tmp_path):
    folder = build().save(tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps(config_of(folder) | {"num_experts_per_tok": 3}))
    assert mixwell.load(folder).config.channel_mixer["router"]["k"] == 3


def test_shards_hold_what_one_file_holds(tmp_path):
    model = build()
    folder = folders.write(model.to_checkpoint(), tmp_path / "model", shard_bytes=2000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 3 and not (folder / "model.safetensors").exists()
    assert torch.equal(logits(mixwell.load(folder).eval()), logits(model))


@pytest.mark.parametrize("fused", [False, True])
def test_experts_lie_apart_or_together(fused, tmp_path):
    model = build()
    folder = folders.write(model.to_checkpoint(), tmp_path / "model", fused_experts=fused)
    names = set(load_file(folder / "model.safetensors"))
    assert ("model.layers.0.mlp.experts.gate_up_proj" in names) == fused
    assert ("model.layers.0.block_sparse_moe.experts.3.w2.weight" in names) != fused
    assert torch.equal(logits(mixwell.load(folder).eval()), logits(model))


def test_types_follow_the_file_the_machine_or_the_wish(tmp_path, monkeypatch):
    folder = build(torch.bfloat16).save(tmp_path / "model")
    assert config_of(folder)["dtype"] == "bfloat16"
    for wish, wanted in (("bf16", torch.bfloat16), ("fp32", torch.float32), (torch.float64, torch.float64)):
        model = mixwell.load(folder, wish)
        assert model.dtype == model.embed.weight.dtype == wanted
        assert model(TOKENS).logits_BTV.dtype == torch.promote_types(wanted, torch.float32)
    for fast in (torch.bfloat16, torch.float32):  # what the machine at hand is found to be quick in
        monkeypatch.setattr(weights, "compute_dtype", lambda fast=fast: fast)
        assert mixwell.load(folder).dtype == fast
    assert mixwell.load(folder).norm.weight.dtype == torch.float32
    with pytest.raises(MixwellError, match="dtype 'int4' is not known; expected auto, fp32"):
        mixwell.load(folder, "int4")


def test_half_precision_files_are_computed_in_float32(tmp_path):
    folder = build().save(tmp_path / "model")
    path = folder / "model.safetensors"
    save_file({n: t.half() for n, t in load_file(path).items()}, path)
    assert mixwell.load(folder).dtype == torch.float32


def quantised(checkpoint: Checkpoint) -> Checkpoint:
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        if name.endswith(("proj", "qkv.weight", "out.weight", "head.weight")):
            scale = tensor.float().abs().amax(-1, keepdim=True) / 127
            tensors[name] = (tensor.float() / scale).round().to(torch.int8)
            tensors[name + ".scale"] = scale
        else:
            tensors[name] = tensor
    return checkpoint.derive(tensors=tensors)


@pytest.mark.parametrize("channel", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_int8_weights_stay_int8_and_round_trip(channel, tmp_path):
    small = quantised(build(channel_mixer=channel).to_checkpoint())
    wide = {n: t.float() * small.tensors[n + ".scale"] if t.dtype == torch.int8 else t for n, t in small.tensors.items()
            if not n.endswith(".scale")}
    expected = logits(LanguageModel.from_checkpoint(small.derive(tensors=wide)).eval())
    folder = folders.write(small, tmp_path / "model")
    assert config_of(folder)["model_type"] == "mixwell"
    model = mixwell.load(folder).eval()
    torch.testing.assert_close(logits(model), expected)
    again = model.to_checkpoint().tensors
    assert set(again) == set(small.tensors)
    assert all(torch.equal(again[n], t) and again[n].dtype == t.dtype for n, t in small.tensors.items())
    torch.testing.assert_close(model.token_nats(TOKENS, TOKENS),
                               torch.nn.functional.cross_entropy(expected[0], TOKENS[0], reduction="none")[None])


def test_a_model_is_a_copy_of_its_checkpoint():
    checkpoint = build().to_checkpoint()
    before = checkpoint.tensors["embed.weight"].clone()
    with torch.no_grad():
        LanguageModel.from_checkpoint(checkpoint).embed.weight.zero_()
    assert torch.equal(checkpoint.tensors["embed.weight"], before)


@pytest.mark.parametrize("own", [False, True], ids=["mixtral", "mixwell"])
@pytest.mark.parametrize(("change", "message"), [
    ("drop", "is missing"), ("add", "stray.weight has no place in this"), ("shape", r"has shape \[8, 2\]"),
])
def test_refuses_tensors_that_do_not_fit(own, change, message, tmp_path):
    folder = build(channel_mixer=SPARSE | ({"shared_experts": 1} if own else {})).save(tmp_path / "model")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "layers.1.channel_mixer.router.weight" if own else "model.layers.1.block_sparse_moe.gate.weight"
    if change == "drop":
        del tensors[name]
    elif change == "add":
        tensors["stray.weight"] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(8, 2)
    save_file(tensors, path)
    with pytest.raises(MixwellError, match=message if change == "add" else f"{name} {message}"):
        mixwell.load(folder)


@pytest.mark.parametrize("own", [False, True], ids=["mixtral", "mixwell"])
def test_refuses_tensors_of_another_architecture(own, tmp_path):
    folder = build(channel_mixer=SPARSE | ({"shared_experts": 1} if own else {})).save(tmp_path / "model")
    found = folders.read(folder)
    wider = found.derive(arch={**found.arch, "vocab_size": found.arch["vocab_size"] + 1})
    with pytest.raises(MixwellError, match=r"embed\.weight has shape .*; expected"):
        LanguageModel.from_checkpoint(wider)


def test_refuses_half_an_int8_weight():
    small = quantised(build().to_checkpoint())
    name = "layers.0.channel_mixer.down_proj"
    without = {n: t for n, t in small.tensors.items() if n != name + ".scale"}
    with pytest.raises(MixwellError, match=f"{name} is torch.int8 without"):
        LanguageModel.from_checkpoint(small.derive(tensors=without))


@pytest.mark.parametrize(("content", "message"), [
    ("[1]", "holds no keys and values"), ("{", "not readable as JSON"),
    ('{"model_type": "mixwell", "arch": {"vocab_size": 3}}', "missing dim"),
    ('{"model_type": "lama"}', "model_type 'lama' is not known. Did you mean 'llama'"),
])
def test_refuses_a_broken_config(content, message, tmp_path):
    folder = build().save(tmp_path / "model")
    (folder / "config.json").write_text(content)
    with pytest.raises(MixwellError, match=message):
        mixwell.load(folder)


def test_refuses_a_folder_that_is_none(tmp_path):
    with pytest.raises(MixwellError, match="is not a folder"):
        mixwell.load(tmp_path / "nothing")
    with pytest.raises(MixwellError, match=r"config.json is not there"):
        mixwell.load(tmp_path)


def test_a_converted_model_changes_its_family():
    arch = to_dict(build(channel_mixer=DENSE).config) | {"architecture": "mistral"}
    assert model_type_of(arch) == "mistral"
    assert model_type_of(arch | {"channel_mixer": SPARSE}) == "mixtral"


def test_the_tokenizer_travels_with_the_model(tmp_path):
    from mixwell.lm.tokenizer import Tokenizer

    model = build()
    assert model.tokenizer is None
    model.files = {"chat_template.jinja": b"{{ x }}"}
    model.tokenizer = Tokenizer.train(["to be or not to be"] * 3, 260)
    again = mixwell.load(model.save(tmp_path / "model"))
    assert again.tokenizer.encode("to be") == model.tokenizer.encode("to be")
    assert again.files["chat_template.jinja"] == b"{{ x }}"


def test_refuses_a_broken_record(tmp_path):
    folder = build().save(tmp_path / "model")
    (folder / "mixwell.json").write_text("[1]")
    with pytest.raises(MixwellError, match=r"mixwell\.json holds no keys and values"):
        mixwell.load(folder)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_lora_files_are_not_left_out_silently(file, tmp_path):
    folder = build().save(tmp_path / "model")
    (folder / file).write_text("{}")
    with pytest.raises(MixwellError, match=rf"holds a model and beside it LoRA files \({file}\)"):
        mixwell.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(MixwellError, match=r"holds a LoRA adapter .* without its model"):
        mixwell.load(folder)


@pytest.mark.parametrize(("prefix", "wrapper"), [("_orig_mod.", r"torch\.compile"), ("module.", "DataParallel")])
def test_names_behind_a_wrapper_are_told(prefix, wrapper, tmp_path):
    folder = build(channel_mixer=DENSE).save(tmp_path / "model")
    path = folder / "model.safetensors"
    save_file({prefix + n: t for n, t in load_file(path).items()}, path)
    with pytest.raises(MixwellError, match=rf"every tensor's name begins with '{prefix}', left by {wrapper}"):
        mixwell.load(folder)


def test_gpt2_of_old_is_read_without_a_prefix(tmp_path):
    """The files of the first GPT-2 name tensors from the layers on, and keep masks."""
    norms = {"norm": "layer_bias", "learned_positions": True, "tie_embeddings": True, "max_positions": 8}
    folder = build(**norms, sequence_mixer={"method": "attention", "bias": True, "rotary_dim": 0},
                   channel_mixer=DENSE | {"gated": False, "bias": True, "activation": "gelu_tanh"}).save(tmp_path / "m")
    assert config_of(folder)["model_type"] == "gpt2"
    expected, path = logits(mixwell.load(folder).eval()), folder / "model.safetensors"
    plain = {n.removeprefix("transformer."): t for n, t in load_file(path).items()}
    save_file(plain | {"h.0.attn.bias": torch.ones(1, 1, 8, 8)}, path)
    model = mixwell.load(folder).eval()
    assert torch.equal(logits(model), expected)
    with pytest.raises(MixwellError, match="longer than 8 tokens"):
        model(torch.zeros(1, 9, dtype=torch.long))
