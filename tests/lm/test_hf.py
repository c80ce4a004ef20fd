"""Hugging Face folders both ways, with transformers as the judge."""

from __future__ import annotations

import json
import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch

import mixwell
import mixwell.formats.tensors
from mixwell.core.errors import MixwellError
from mixwell.lm import folder as folders

transformers = pytest.importorskip("transformers")

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
MODELS = {
    "llama": {},
    "llama, scaled and biased": {"attention_bias": True, "rope_scaling": LLAMA3, "eos_token_id": [2, 5]},
    "llama, tied": {"tie_word_embeddings": True, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "mistral": {"sliding_window": 5, "head_dim": 12},
    "qwen3": {"head_dim": 16, "attention_bias": True},
    "qwen3, windows in some layers": {"head_dim": 8, "use_sliding_window": True, "sliding_window": 4,
                                      "max_window_layers": 1},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    "qwen3_moe, some layers dense": {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
                                     "decoder_sparse_step": 2, "head_dim": 16},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "eos_token_id": 2},
    "olmoe, clipped": {"num_experts": 4, "num_experts_per_tok": 3, "eos_token_id": 2, "clip_qkv": 0.5,
                       "norm_topk_prob": True},
}
BASE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "pad_token_id": 0}
TOKENS = torch.tensor([[7, 61, 5, 33, 12, 9, 50, 18, 44, 3, 27], [6, 6, 19, 40, 8, 55, 23, 4, 31, 62, 15]])


def reference(name: str, folder, **options):
    """A random transformers model, and the folder that it saved."""
    model_type = name.split(",")[0]
    config = transformers.AutoConfig.for_model(model_type, **(BASE | MODELS[name]))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3) if parameter.ndim > 1 else parameter.uniform_(0.3, 0.6)
    model.save_pretrained(folder, **options)
    return model


@torch.no_grad()
def logits(model):
    out = model(TOKENS)
    return out.logits_BTV if hasattr(out, "logits_BTV") else out.logits


@pytest.mark.parametrize("name", MODELS)
def test_both_ways(name, tmp_path):
    theirs = reference(name, tmp_path / "theirs")
    ours = mixwell.load(tmp_path / "theirs").eval()
    expected = logits(theirs)
    assert expected.std() > 0.3
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=1e-4)
    wanted = theirs.generate(TOKENS, max_new_tokens=10, do_sample=False)
    assert torch.equal(ours.generate(TOKENS, 10), wanted)

    written = ours.save(tmp_path / "ours")
    again, report = transformers.AutoModelForCausalLM.from_pretrained(written, output_loading_info=True)
    assert type(again) is type(theirs) and not any(report.values()), report
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-6)
    original = (tmp_path / "theirs/model.safetensors", written / "model.safetensors")
    assert len({frozenset(mixwell.formats.tensors.open_file(path)) for path in original}) == 1
    assert again.generation_config.eos_token_id == theirs.generation_config.eos_token_id


@pytest.mark.parametrize("name", ["mistral", "qwen3_moe, some layers dense", "olmoe, clipped"])
def test_gradients_agree(name, tmp_path):
    theirs, targets = reference(name, tmp_path), TOKENS.roll(-1, 1)
    ours = mixwell.load(tmp_path)
    torch.nn.functional.cross_entropy(theirs(TOKENS).logits.flatten(0, 1), targets.flatten()).backward()
    ours.loss(TOKENS, targets).nats.backward()
    attention = theirs.model.layers[0].self_attn
    projections = torch.cat([p.weight.grad for p in (attention.q_proj, attention.k_proj, attention.v_proj)])
    torch.testing.assert_close(ours.layers[0].sequence_mixer.qkv.weight.grad, projections, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.embed.weight.grad, theirs.model.embed_tokens.weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.layers[1].channel_norm.weight.grad,
                               theirs.model.layers[1].post_attention_layernorm.weight.grad, rtol=1e-4, atol=1e-6)


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


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "mixtral", "qwen3_moe", "olmoe"])
def test_silence_means_what_transformers_assumes(name):
    from mixwell.lm.hf.config import read_config
    from mixwell.lm.hf.families import FAMILIES, SHARED_KEYS

    family = FAMILIES[name]
    theirs = transformers.AutoConfig.for_model(name)
    for key, value in family.defaults.items():
        if key in {"attention_bias", "clip_qkv", "sliding_window"} - set(family.mixer_keys):
            continue
        if key == "rope_theta":
            assert theirs.rope_parameters["rope_theta"] == value
        elif key == "head_dim" and value is None:
            assert getattr(theirs, "head_dim", None) in (None, theirs.hidden_size // theirs.num_attention_heads)
        elif key == "num_key_value_heads" and value is None:
            assert theirs.num_key_value_heads == theirs.num_attention_heads
        elif key == "sliding_window" and family.window_switch:
            assert theirs.sliding_window is None and not theirs.use_sliding_window
        elif key == "mlp_only_layers":
            assert not theirs.mlp_only_layers
        else:
            assert getattr(theirs, key) == value, key
    least = {"model_type": name, "vocab_size": 64, "hidden_size": 256, "num_hidden_layers": 1,
             "num_attention_heads": 32, "intermediate_size": 8}
    assert set(SHARED_KEYS.values()) <= set(read_config(least))


@pytest.mark.parametrize(("name", "change", "message"), [
    ("llama", {"model_type": "gpt2"}, "model_type 'gpt2' is not known. Known: llama, mistral, qwen3, mixtral"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; mixwell computes 'silu' only"),
    ("llama", {"mlp_bias": True}, "mlp_bias is True"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is"),
    ("llama", {"residual_multiplier": 2.0}, "residual_multiplier = 2.0 is not known for llama"),
    ("llama", {"sliding_window": 4}, "sliding_window = 4 is not known for llama"),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' is not supported"),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
     "partial_rotary_factor is not 1"),
    ("llama", {"hidden_size": None}, "hidden_size is missing"),
    ("llama", {"hidden_size": "wide"}, "hidden_size is 'wide'; expected a whole number from 1 to"),
    ("mixtral", {"num_experts_per_tok": 1}, "leaves the router without effect"),
    ("mixtral", {"num_local_experts": 3}, "experts.3.w1.weight has no place in this model"),
    ("olmoe", {"head_dim": 16}, "head_dim = 16; olmoe has hidden_size / num_attention_heads only"),
])
def test_refuses_by_name(name, change, message, tmp_path):
    reference(name, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(MixwellError, match=message):
        mixwell.load(tmp_path)


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
