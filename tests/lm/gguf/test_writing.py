"""GGUF files written here: judged by package gguf, by our own reader, and by llama.cpp where xllamacpp is there.

XLLAMACPP names a Python that has xllamacpp (`XLLAMACPP=/path/to/venv/bin/python`), unless this one has it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mixwell
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.lm.config import ModelConfig
from mixwell.lm.gguf.blocks import KINDS
from mixwell.lm.gguf.reading import GgufFile
from mixwell.lm.gguf.tokenizer import tokenizer_files
from mixwell.lm.gguf.words import words_of
from mixwell.lm.gguf.writing import write_gguf
from mixwell.lm.model import LanguageModel
from mixwell.lm.tokenizer import Tokenizer
from tests.lm.tiny import TEXTS

gguf = pytest.importorskip("gguf")
FLOATS = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8}  # relative rounding; others are judged byte by byte

EXPERTS = {"method": "moe", "num_experts": 4, "hidden_dim": 32, "router": {"method": "top_k", "k": 2}}
UNSCALED = EXPERTS | {"router": {"method": "top_k", "k": 2, "renormalise": False}}
DENSE = {"method": "swiglu", "hidden_dim": 96}
CASES = {  # general.architecture, what differs from a dense model
    "llama": ("llama", {"channel_mixer": DENSE, "head_dim": 24}),
    "tied": ("llama", {"channel_mixer": DENSE, "tie_embeddings": True}),
    "linear": ("llama", {"channel_mixer": DENSE, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    "mixtral": ("llama", {"channel_mixer": EXPERTS}),
    "qwen2": ("qwen2", {"channel_mixer": DENSE, "sequence_mixer": {"method": "attention", "bias": True,
                                                                   "out_bias": False}}),
    "qwen2moe": ("qwen2moe", {
        "channel_mixer": UNSCALED | {"shared_experts": 1, "shared_gate": True, "shared_hidden_dim": 64},
        "sequence_mixer": {"method": "attention", "bias": True, "out_bias": False}}),
    "qwen3": ("qwen3", {"channel_mixer": DENSE, "head_dim": 32,
                        "sequence_mixer": {"method": "attention", "qk_norm": "head"}}),
    "qwen3moe": ("qwen3moe", {"channel_mixer": EXPERTS, "head_dim": 32,
                              "sequence_mixer": {"method": "attention", "qk_norm": "head"}}),
    "olmoe": ("olmoe", {"channel_mixer": UNSCALED, "num_kv_heads": 4,
                        "sequence_mixer": {"method": "attention", "qk_norm": "full"}}),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train((text for texts in TEXTS.values() for text in texts), 300)


@pytest.fixture(scope="module")
def models(tokenizer) -> dict[str, LanguageModel]:
    return {name: model_of(options, tokenizer) for name, (_, options) in CASES.items()}


def model_of(options, tokenizer) -> LanguageModel:
    config = ModelConfig(**{"vocab_size": tokenizer.vocab_size + 4, "dim": 64, "num_layers": 2, "num_heads": 4,
                            "num_kv_heads": 2} | options)
    model = LanguageModel(config, torch.Generator().manual_seed(1)).eval()
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=draws)
            if parameter.ndim == 1:
                parameter += 1
    model.tokenizer = tokenizer
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40).view(2, 20)).logits_BTV


@pytest.mark.parametrize("name", CASES)
def test_the_reader_finds_the_same_model(name, models, tmp_path):
    path = write_gguf(models[name].to_checkpoint(), tmp_path / "m.gguf", "f32")
    assert GgufFile(path).metadata["general.architecture"] == CASES[name][0]
    expected = logits(models[name])
    assert expected.std() > 0.3
    assert torch.equal(logits(mixwell.load(path)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_package_gguf_reads_what_it_would_have_written(kind, models, tmp_path):
    """Every tensor of the file, byte by byte, beside package gguf's own quantiser."""
    model = models["qwen3moe"]
    path = write_gguf(model.to_checkpoint(), tmp_path / "m.gguf", kind)
    reader = gguf.GGUFReader(path)
    whole = GgufFile(write_gguf(model.to_checkpoint(), tmp_path / "whole.gguf", "f32"))
    assert {tensor.name for tensor in reader.tensors} == whole.names
    matrices = 0
    for tensor in reader.tensors:
        exact = whole.tensor(tensor.name).numpy()
        wanted = wanted_kind(tensor.name, exact, kind)
        assert tensor.tensor_type.name.lower() == wanted
        matrices += wanted not in ("f32", kind) or wanted == kind
        if wanted in FLOATS:
            read = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert (np.abs(read - exact) <= FLOATS[wanted] * np.abs(exact) + 1e-7 * (wanted == "f16")).all()
        else:
            theirs = gguf.quants.quantize(exact, gguf.GGMLQuantizationType[wanted.upper()])
            assert np.array_equal(np.asarray(tensor.data).reshape(theirs.shape), theirs)
    assert matrices >= 2 * 7 + 2
    assert reader.fields["general.file_type"].contents() == KINDS[kind].file_type


def wanted_kind(name: str, exact: np.ndarray, kind: str) -> str:
    if exact.ndim == 1 or "ffn_gate_inp" in name:
        return "f32"
    if kind.startswith("q4") and name in ("token_embd.weight", "output.weight"):
        return "q8_0"
    return kind


def awkward() -> torch.Tensor:
    """Blocks of zeros, of ties, of one sign, of equal numbers, and others."""
    draws = torch.Generator().manual_seed(0)
    ties = torch.arange(32).float().sub(16).div(2)
    rows = [torch.zeros(32), ties, ties.abs(), -ties.abs() - 1, torch.full((32,), -3.0), torch.full((32,), 1e-30),
            torch.cat([torch.tensor([127.0, 0.49999997, -0.49999997, 0.5, -0.5, 1.5, 126.49999]), torch.ones(25)]),
            torch.cat([torch.tensor([8.0, -8.0]), torch.zeros(30)]), ties * 127 / 8]
    return torch.cat([torch.stack(rows), torch.randn(4000, 32, generator=draws)])


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1"])
def test_blocks_agree_with_the_reference_at_ties_zeros_and_ends(kind):
    rows = awkward()
    ours = KINDS[kind].encode(rows.clone())
    with np.errstate(all="ignore"):
        theirs = gguf.quants.quantize(rows.numpy(), gguf.GGMLQuantizationType[kind.upper()])
    assert np.array_equal(ours.numpy(), theirs)
    assert ours.shape[1] == KINDS[kind].width and KINDS[kind].bits_per_weight == ours.shape[1] / 4


def test_the_tokenizer_and_the_template_come_along(tokenizer, models, tmp_path):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    config = json.loads(tokenizer.save_files()["tokenizer_config.json"]) | {"chat_template": template}
    files = {**tokenizer.save_files(), "tokenizer_config.json": json.dumps(config).encode(),
             "generation_config.json": json.dumps({"eos_token_id": [0, 7]}).encode()}
    checkpoint = replace(models["llama"].to_checkpoint(), files=files)
    again = mixwell.load(write_gguf(checkpoint, tmp_path / "m.gguf", "f32"))
    text = "the cats don't see 12 dogs <|endoftext|> ü"
    assert again.tokenizer.encode(text) == tokenizer.encode(text)
    assert again.tokenizer.eos_id == tokenizer.eos_id
    assert json.loads(again.files["tokenizer_config.json"])["chat_template"] == template
    assert again.stop_ids() == (0, 7) if callable(again.stop_ids) else again.stop_ids == (0, 7)


def test_byte_pairs_of_sentence_piece_come_along():
    """A tokenizer that was read from a GGUF file of that kind goes back into the same metadata."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "c", "ab",
              "\u2581a", "\u2581ab", "abc"]
    said = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces, "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.scores": [0.0] * 263 + [-3.0, -1.0, -2.0, -4.0],
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * 8]}
    files = tokenizer_files(said, "test")
    found = words_of(files, len(pieces))
    assert {key: found[key] for key in said if not key.endswith("scores")} == {
        key: value for key, value in said.items() if not key.endswith("scores")}
    again = Tokenizer.from_files(tokenizer_files(found, "test"))
    assert again.encode("abc ab a cab é") == Tokenizer.from_files(files).encode("abc ab a cab é")
    assert found["tokenizer.ggml.add_bos_token"] is True
    main = json.loads(files["tokenizer.json"])
    main["added_tokens"].append({**main["added_tokens"][0], "id": len(pieces), "content": "[PAD]", "special": True})
    rows = len(pieces) + 3  # a token that was added to the vocabulary, and rows that are no token's
    wider = words_of({**files, "tokenizer.json": json.dumps(main).encode()}, rows)
    assert {len(wider[f"tokenizer.ggml.{name}"]) for name in ("tokens", "token_type", "scores")} == {rows}
    assert wider["tokenizer.ggml.scores"][: len(pieces)] == found["tokenizer.ggml.scores"]


def test_refusals_say_what_to_do(tokenizer, models, tmp_path):
    dense = models["llama"].to_checkpoint()
    path = tmp_path / "m.gguf"
    with pytest.raises(MixwellError, match=r"type 'q4_k_m' is not written.*k-quants .* made by llama-quantize"):
        write_gguf(dense, path, "q4_k_m")
    with pytest.raises(MixwellError, match=r"type 'q8_1' is not written.*Did you mean"):
        write_gguf(dense, path, "q8_1")
    narrow = model_of({"dim": 48, "channel_mixer": DENSE}, tokenizer)
    with pytest.raises(MixwellError, match="has rows of 48 numbers; q8_0 takes multiples of 32"):
        write_gguf(narrow.to_checkpoint(), path, "q8_0")
    norm = model_of({"channel_mixer": DENSE, "norm": "layer"}, tokenizer)
    with pytest.raises(MixwellError, match="cannot be written as GGUF; written are llama"):
        write_gguf(norm.to_checkpoint(), path, "f32")
    mixed = model_of({"channel_mixer": (DENSE, EXPERTS), "head_dim": 32, "num_layers": 2,
                      "sequence_mixer": {"method": "attention", "qk_norm": "head"}}, tokenizer)
    with pytest.raises(MixwellError, match=r"GGUF's qwen3moe cannot say channel_mixer.0."):
        write_gguf(mixed.to_checkpoint(), path, "f32")
    grouped = model_of(CASES["olmoe"][1] | {"num_kv_heads": 2}, tokenizer)
    with pytest.raises(MixwellError, match="olmoe has as many heads of keys as of queries; the model has 2 and 4"):
        write_gguf(grouped.to_checkpoint(), path, "f32")
    big = dict(dense.tensors)
    big["head.weight"] = big["head.weight"] * 1e6
    with pytest.raises(MixwellError, match=r"output.weight: .* is beyond float16"):
        write_gguf(dense.derive(tensors=big), path, "f16")
    main = json.loads(tokenizer.save_files()["tokenizer.json"])
    main["pre_tokenizer"] = {"type": "Whitespace"}
    odd = {**dense.files, "tokenizer.json": json.dumps(main).encode()}
    with pytest.raises(MixwellError, match="the tokenizer cannot be written as GGUF"):
        write_gguf(replace(dense, files=odd), path, "f32")
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_tokenizer_is_written_without_one(models, tmp_path):
    bare: Checkpoint = replace(models["llama"].to_checkpoint(), files={})
    assert mixwell.load(write_gguf(bare, tmp_path / "m.gguf", "f32")).tokenizer is None


def llama_cpp() -> str | None:
    """A Python that has xllamacpp."""
    return sys.executable if importlib.util.find_spec("xllamacpp") else os.environ.get("XLLAMACPP")


@pytest.mark.skipif(llama_cpp() is None, reason="xllamacpp is not installed; XLLAMACPP may name a Python that has it")
def test_llama_cpp_computes_the_same(models, tmp_path):
    """All architectures in f32, a mixture in all types: log probabilities behind two prompts, and text."""
    files = {name: ("f32", models[name]) for name in CASES}
    files |= {kind: (kind, models["qwen3moe"]) for kind in KINDS}
    paths = [write_gguf(model.to_checkpoint(), tmp_path / f"{name}.gguf", kind)
             for name, (kind, model) in files.items()]
    prompts, say = [[5, 6, 7, 8, 9, 10, 11], [200, 34, 60]], 66
    asked = json.dumps({"files": [str(path) for path in paths], "prompts": prompts, "say": say})
    done = subprocess.run([llama_cpp(), Path(__file__).with_name("llama_cpp.py")], input=asked, text=True,
                          capture_output=True, check=True)
    for (name, (kind, model)), path, told in zip(files.items(), paths, json.loads(done.stdout)):
        for source in (model, mixwell.load(path)):
            for prompt, (pairs, text) in zip(prompts, told):
                with torch.no_grad():
                    ours = source(torch.tensor([prompt])).logits_BTV[0, -1].float().log_softmax(-1)
                theirs = torch.full_like(ours, torch.nan)
                for number, value in pairs:
                    theirs[number] = value
                # beside the file itself only llama.cpp's own rounding of activations is left, to 8 or 16 bits
                beside = 1.0 if source is model else 0.1
                limit = {"f32": 1e-4, "f16": 5e-3, "bf16": 5e-2, "q8_0": 0.1}.get(kind, beside)
                assert (theirs - ours).abs().max() < limit, (name, kind)
                assert text == model.tokenizer.decode([say]) * 3
