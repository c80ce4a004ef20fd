"""Hugging Face folders both ways, with transformers as the judge."""

from __future__ import annotations

import json

import pytest
import torch

import mixwell
import mixwell.formats.tensors
from mixwell.core.errors import MixwellError
from mixwell.formats.plain import check_object
from mixwell.lm import folder as folders
from mixwell.lm import schemas
from mixwell.lm.hf.config import read_config
from mixwell.lm.hf.families import FAMILIES
from mixwell.lm.hf.tensors import Gathered, recipes
from mixwell.lm.hf.writing import comparable
from tests.lm.parity import MODELS, PAGE, TOKENS, compare, logits, reference

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("name", MODELS)
def test_both_ways(name, tmp_path):
    found = compare(name, tmp_path)
    assert found["spread"] > 0.3
    assert found["logit_error"] < 1e-4
    assert found["same_tokens"]
    assert found["same_bits"]
    assert found["read_again"] and found["again_error"] < 1e-6
    assert found["same_stops"]


def test_every_decoder_is_tried_and_stands_in_the_page():
    assert {name.split(",")[0] for name in MODELS} == set(FAMILIES)
    assert all(f"`{model_type}`" in PAGE.read_text() for model_type in FAMILIES)


MOVED = {"granitemoe": ("router.weight", "router.layer.weight"),  # in memory, in a file
         "gpt_neox": ("lm_head.weight", "embed_out.weight")}


@pytest.mark.parametrize("name", ["mistral", "qwen2", "olmo2", "gemma2", "gemma3_text", "smollm3", "granitemoe", "phi3",
                                  "cohere2", "gpt_neox", "gpt2", "qwen2_moe", "qwen3_moe, some layers dense",
                                  "olmoe, clipped", "deepseek_v3, YaRN", "deepseek_v2", "glm4_moe", "gpt_oss"])
def test_gradients_agree(name, tmp_path):
    theirs, targets = reference(name, tmp_path), TOKENS.roll(-1, 1)
    ours = mixwell.load(tmp_path)
    torch.nn.functional.cross_entropy(theirs(TOKENS).logits.flatten(0, 1), targets.flatten()).backward()
    ours.loss(TOKENS, targets).nats.backward()
    slopes = {n.replace(*MOVED.get(name, ("", ""))): p.grad for n, p in theirs.named_parameters()}
    checkpoint = ours.to_checkpoint()
    shapes = {n: tuple(t.shape) for n, t in ours.named_parameters()}
    expected = Gathered(slopes, recipes(checkpoint.arch, checkpoint.arch["architecture"], shapes, slopes), "gradients")
    for canonical, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[canonical], rtol=1e-4, atol=2e-6, msg=canonical)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gpt_oss", "deepseek_v3", "gpt2", "gpt_neox", "cohere2",
                                  "qwen2_moe", "granite"])
def test_bfloat16_stays_near_and_learns(name, tmp_path):
    reference(name, tmp_path)
    expected = logits(mixwell.load(tmp_path).eval())
    half = mixwell.load(tmp_path, "bf16").eval()
    assert (logits(half) - expected).norm() < 0.15 * expected.norm()
    assert half.generate(TOKENS, 3).shape == (2, TOKENS.shape[1] + 3)
    half.train().loss(TOKENS, TOKENS.roll(-1, 1)).nats.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in half.parameters())


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe"])
def test_experts_in_one_tensor(name, tmp_path):
    expected = logits(reference(name, tmp_path / "theirs", save_original_format=False))
    names = set(mixwell.formats.tensors.open_file(tmp_path / "theirs/model.safetensors"))
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    ours = mixwell.load(tmp_path / "theirs").eval()
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=1e-4)
    written = folders.write(ours.to_checkpoint(), tmp_path / "ours", fused_experts=True)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(written, output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-6)


def test_shards_both_ways(tmp_path):
    expected = logits(reference("mixtral", tmp_path / "theirs", max_shard_size="20KB"))
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    ours = mixwell.load(tmp_path / "theirs").eval()
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=1e-4)
    written = folders.write(ours.to_checkpoint(), tmp_path / "ours", shard_bytes=20_000)
    assert len(list(written.glob("*.safetensors"))) > 2
    again = transformers.AutoModelForCausalLM.from_pretrained(written)
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-6)


def test_older_spellings_are_read(tmp_path):
    expected = logits(reference("mixtral", tmp_path))
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    old = config | {"rope_theta": theta, "rope_scaling": None, "torch_dtype": config.pop("dtype"), "num_experts": 4}
    path.write_text(json.dumps(old))
    torch.testing.assert_close(logits(mixwell.load(tmp_path).eval()), expected, rtol=0, atol=1e-4)


def sizes_of(name):
    """What config.json of a decoder cannot leave out."""
    if name == "gpt2":
        return {"vocab_size": 64, "n_embd": 256, "n_layer": 4, "n_head": 32}
    sizes = {"vocab_size": 64, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 32,
             "intermediate_size": 8}
    # transformers assumes none, and computes nothing then
    return sizes | {"num_experts_per_tok": 2} if name == "deepseek_v2" else sizes


@pytest.mark.parametrize("name", FAMILIES)
def test_silence_means_what_transformers_assumes(name):
    """What config.json of a decoder does not say counts as its own config class has it."""
    sizes = sizes_of(name)
    silent = {"model_type": name, **sizes}
    said = json.loads(transformers.AutoConfig.for_model(name, **sizes).to_json_string(use_diff=False))
    assert comparable(read_config(silent)) == comparable(read_config(said))


@pytest.mark.parametrize(("name", "change", "message"), [
    ("llama", {"model_type": "t5"}, "model_type 't5' is not known. Known: llama, mistral, qwen2, qwen3"),
    ("llama", {"hidden_act": "relu2"}, "activation: 'relu2' is not one of silu"),
    ("mixtral", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; mixwell computes experts with 'silu' only"),
    ("llama", {"mlp_bias": True}, r"mlp.down_proj.bias is missing"),
    ("deepseek_v3", {"rope_interleave": False}, "rope_interleave is False; mixwell computes True only"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is"),
    ("gpt_oss", {"quantization_config": {"quant_method": "mxfp4"}}, r"quant_method 'mxfp4'.*in bfloat16, float16 or"),
    ("deepseek_v3", {"quantization_config": {"quant_method": "fp8"}}, "quant_method 'fp8'"),
    ("llama", {"residual_multiplier": 2.0}, "residual_multiplier = 2.0 is not known for llama"),
    ("llama", {"sliding_window": 4}, "sliding_window = 4 is not known for llama"),
    ("llama", {"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "'ntk' is not supported"),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
     "partial_rotary_factor is not 1"),
    ("llama", {"hidden_size": None}, "hidden_size is missing"),
    ("llama", {"hidden_size": "wide"}, "hidden_size is 'wide'; expected a whole number from 1 to"),
    ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = .* is not known for mistral"),
    ("mixtral", {"num_local_experts": 3}, "experts.3.w1.weight has no place in this model"),
    ("gemma2", {"layer_types": ["full_attention", "chunked_attention", "full_attention"]},
     "layer_types names 'chunked_attention'; mixwell computes 'full_attention' and 'sliding_attention'"),
    ("gemma2", {"layer_types": ["full_attention"]}, "layer_types has 1 entries; expected one for each of 3 layers"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries; expected one for each of 4 layers"),
    ("granite", {"logits_scaling": 0}, "logits_scaling is 0; expected a number at least 1e-06"),
    ("deepseek_v3", {"first_k_dense_replace": "all"}, "first_k_dense_replace is 'all'; expected a whole number"),
    ("gemma3_text", {"rope_parameters": {"full_attention": "plain"}}, "full_attention is 'plain'; expected keys"),
    ("olmoe", {"head_dim": 16}, "head_dim = 16; olmoe has hidden_size / num_attention_heads only"),
])
def test_refuses_by_name(name, change, message, tmp_path):
    reference(name, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(MixwellError, match=message):
        mixwell.load(tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_odd_values_of_any_key_are_refused_in_one_line(name):
    """What the file may hold under each key that this decoder reads; anything but `MixwellError` fails."""
    refused = 0
    for key in {**FAMILIES[name].defaults, **FAMILIES[name].mixer_keys, **FAMILIES[name].block_keys}:
        for value in ("x", 0, -1.5, None, [[1]], {"a": 1}):
            config = {"model_type": name, **sizes_of(name), key: value}
            try:
                read_config(check_object(config, schemas.CONFIG, "here"))
            except MixwellError:
                refused += 1
    assert refused > 50


def test_a_head_beside_tied_embeddings_must_be_the_same(tmp_path):
    from safetensors.torch import load_file, save_file

    reference("llama, tied", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # a constant that older files hold
    save_file(tensors, path, metadata={"format": "pt"})
    assert mixwell.load(tmp_path).config.tie_embeddings
    tensors["lm_head.weight"] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(MixwellError, match=r"lm_head\.weight has no place in this model"):
        mixwell.load(tmp_path)


def test_tokenizer_files_come_along(tmp_path):
    reference("llama", tmp_path / "theirs")
    carried = {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}", "special_tokens_map.json": b"{}",
               "chat_template.jinja": b"{{ x }}"}
    for name, data in carried.items():
        (tmp_path / "theirs" / name).write_bytes(data)
    written = mixwell.load(tmp_path / "theirs").save(tmp_path / "ours")
    assert {name: (written / name).read_bytes() for name in carried} == carried
    name = "generation_config.json"
    assert (written / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
