"""Model folders that something happened to: what is read is checked, what is written lasts, nothing foreign leaks."""

from __future__ import annotations

import functools
import json
import math
import os
import resource
import shutil
import struct
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mixwell
from mixwell.core import disk, machine
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.lm import folder as folders
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.lm.receipt import measure
from mixwell.lm.tokenizer import FILES, Tokenizer
from tests import faults
from tests.lm.test_folder import DENSE, SPARSE, TOKENS, build, logits, quantised

SIDE = {"tokenizer_config.json": b'{"eos_token": "x"}', "merges.txt": b"#version: 0.2\n"}


@functools.cache
def sound(own):
    """A folder of the tiny mixture, Mixtral's or mixwell's own, saved once and copied for each test."""
    whole = tempfile.TemporaryDirectory()
    model = build(channel_mixer=SPARSE | ({"shared_experts": 1} if own else {}))
    model.files = dict(SIDE)
    model.save(Path(whole.name) / "model")
    return whole


def saved(path, *, own=False):
    """A copy of a sound folder, to be spoilt."""
    return Path(shutil.copytree(Path(sound(own).name) / "model", path))


def edited(path, change):
    """A JSON file with something changed in it."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("shard_bytes", [2**30, 2000], ids=["one file", "shards"])
@pytest.mark.parametrize("before", [False, True], ids=["new", "over an old one"])
def test_each_prefix_of_a_save_is_the_old_model_or_the_new(before, shard_bytes, tmp_path):
    if before:
        build(channel_mixer=DENSE).save(tmp_path / "model")
    old = faults.image_of(tmp_path)
    checkpoint = build().to_checkpoint().derive(record={"stage": "build"})
    with faults.recorded(tmp_path) as tape:
        folders.write(checkpoint, tmp_path / "model", shard_bytes=shard_bytes)
    new = faults.image_of(tmp_path)
    found = [{path: data for path, data in image.items() if not disk._SCRATCH.fullmatch(path.partition("/")[0])}
             for image in tape.images()]
    assert all(image in (old, new) for image in found) and old in found
    assert new in found and not any(path.startswith(".") for path in new)
    assert all(new.items() <= image.items() for image in tape.last())
    assert torch.equal(logits(mixwell.load(tmp_path / "model").eval()), logits(build()))


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s.view(torch.int32), "scale is int32; expected float32"),
    (lambda s: s.double(), "scale is float64; expected float32"),
    (lambda s: s[:1], r"scale has shape \[1, 1\]; expected \[8, 1\]"),
    (lambda s: s * math.nan, "scale holds nan; expected finite numbers"),
    (lambda s: s * math.inf, "scale holds inf"),
    (lambda s: -s, "scale holds -.*; expected numbers above 0"),
])
def test_scales_of_int8_weights_are_what_was_declared(change, message, tmp_path):
    small = quantised(build().to_checkpoint())
    name = "layers.1.sequence_mixer.out.weight.scale"
    tensors = {**small.tensors, name: change(small.tensors[name]).contiguous()}
    with pytest.raises(MixwellError, match=f"checkpoint: .*{message}"):
        LanguageModel.from_checkpoint(small.derive(tensors=tensors))
    folder = folders.write(small, tmp_path / "model")
    save_file({**load_file(folder / "model.safetensors"), name: tensors[name]}, folder / "model.safetensors")
    with pytest.raises(MixwellError, match=f"model: .*{message}"):
        mixwell.load(folder)


@pytest.mark.parametrize("own", [False, True], ids=["mixtral", "mixwell"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number_is_named(own, dtype, value, tmp_path):
    folder = saved(tmp_path / "model", own=own)
    path = folder / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    name = sorted(name for name in tensors if "norm" in name)[-1]
    tensors[name][3] = value
    save_file(tensors, path)
    with pytest.raises(MixwellError, match=f"{name} holds {value}; expected finite numbers"):
        mixwell.load(folder)


def test_a_large_tensor_is_looked_at_to_its_end_and_may_hold_large_numbers():
    checkpoint = build(vocab_size=20000).to_checkpoint()
    embed = torch.full((20000, 8), 3e38)  # their sum is not finite, they are
    made = LanguageModel.from_checkpoint(checkpoint.derive(tensors={**checkpoint.tensors, "embed.weight": embed}))
    assert torch.equal(made.embed.weight, embed)
    embed[-1, -1] = math.nan
    with pytest.raises(MixwellError, match=r"embed\.weight holds nan"):
        LanguageModel.from_checkpoint(checkpoint.derive(tensors={**checkpoint.tensors, "embed.weight": embed}))


@pytest.mark.parametrize(("dtype", "name"), [(torch.int32, "int32"), (torch.uint8, "uint8"), (torch.int8, "int8"),
                                             (torch.float8_e4m3fn, "of a type that is not read")])
def test_weights_are_floating(dtype, name, tmp_path):
    folder = saved(tmp_path / "model")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(dtype)
    save_file(tensors, path)
    with pytest.raises(MixwellError, match=f"lm_head.weight is {name}; expected bfloat16, float16, float32, float64"):
        mixwell.load(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "merges.txt", "config.json", "mixwell.json",
                                  "model.safetensors"])
def test_a_link_out_of_the_folder_is_not_followed(name, tmp_path):
    folder = saved(tmp_path / "model")
    (folder / name).rename(tmp_path / "secret")
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(MixwellError, match=rf"{name} is a link to .*secret, outside the folder"):
        mixwell.load(folder)
    (folder / "inside").write_bytes((tmp_path / "secret").read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to("inside")
    mixwell.load(folder)


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    home = tmp_path / "models--a--b"
    (home / "blobs").mkdir(parents=True)
    folder = home / "snapshots" / "0123abcd"
    saved(folder)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(home / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    assert torch.equal(logits(mixwell.load(folder).eval()), logits(build()))
    (home / "refs").mkdir()
    shutil.copy(folder / "merges.txt", home / "refs" / "main")
    (folder / "merges.txt").unlink()
    (folder / "merges.txt").symlink_to("../../refs/main")
    with pytest.raises(MixwellError, match="outside the folder"):
        mixwell.load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "mixwell.json", "model.safetensors",
                                  "model.safetensors.index.json"])
@pytest.mark.parametrize(("make", "message"), [
    (lambda path: path.mkdir(), "is a folder; expected a file"),
    (lambda path: os.mkfifo(path), "is a device, a pipe or a socket"),
    (lambda path: path.symlink_to("/dev/zero"), "is a device, a pipe or a socket"),
    (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic links"),
    (lambda path: path.symlink_to("gone"), "cannot be read: No such file"),
])
def test_what_is_no_file_is_refused(name, make, message, tmp_path):
    folder = saved(tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(MixwellError, match=f"{name} {message}"):
        mixwell.load(folder)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("tokenizer.json", b"root:x:0:0:root:/root:/bin/bash\n", "not readable as JSON"),
    ("tokenizer.json", b"[1]", "holds no keys and values"),
    ("tokenizer.json", b'{"model": null}', "model is None; expected keys and values"),
    ("added_tokens.json", b'"key"', "holds no keys and values"),
    ("merges.txt", b"\xff\xfe", "is not text in UTF-8"),
    ("tokenizer.model", b"-----BEGIN PRIVATE KEY-----", "is not a list of pieces"),
    ("generation_config.json", b'{"temperature": "hot"}', "temperature is 'hot'; expected a number at least 0"),
    ("tokenizer_config.json", b'{"eos_token": 3}', "eos_token is 3; expected text or keys and values"),
    ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template is 3; expected text or a list"),
    ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}', "is {'name'.* name and template"),
    ("chat_template.jinja", b"\xff\xfe", "is not text in UTF-8"),
])
def test_side_files_are_what_they_claim_to_be(name, content, message, tmp_path):
    folder = saved(tmp_path / "model")
    (folder / name).write_bytes(content)
    with pytest.raises(MixwellError, match=f"{name}.* {message}"):
        mixwell.load(folder)
    if name in FILES:
        with pytest.raises(MixwellError, match=f"{name}.* {message}"):
            Tokenizer.load(folder)


def header(length, body=b"{}"):
    return struct.pack("<Q", length) + body


@pytest.mark.parametrize(("content", "size", "message"), [
    (header(2**40), None, "is not a safetensors file .header too large"),
    (header(2**31), 2**31 + 8, "header too large"),
    (header(100_000_001), 100_000_009, "header too large"),
    (header(2**63), None, "header too large"),
    (header(20, b"[" * 20), None, "not a safetensors file"),
    (header(7000, b'{"a":' * 1400), None, "not a safetensors file"),
    (header(6003, b'"' + b"x" * 6001 + b'"'), None, "invalid type: string .x{100,180} [.]{3}[)]"),
])
def test_a_header_is_bounded_before_it_is_read(content, size, message, tmp_path):
    folder = saved(tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(content)
    if size is not None:
        os.truncate(path, size)  # a hole: no disk is taken
    with pytest.raises(MixwellError, match=f"model.safetensors .*{message}"):
        mixwell.load(folder)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("num_hidden_layers", 2**63, "num_hidden_layers is 9223372036854775808; expected a whole number from 1 to"),
    ("num_hidden_layers", 2**31 - 1, "2147483647 layers; there are .* tensors, too few"),
    ("num_hidden_layers", [2], r"num_hidden_layers is \[2\]"),
    ("num_local_experts", 2**31 - 1, "num_local_experts is 2147483647; the tensors hold at most"),
    ("vocab_size", 2**31 - 1, "takes .* GiB .* this machine has"),
    ("hidden_size", 2**31 - 1, "takes|larger than any memory"),
    ("sliding_window", 2**63, "sliding_window is 9223372036854775808; expected a whole number"),
    ("sliding_window", "wide", "sliding_window is 'wide'"),
    ("rope_parameters", [1], r"rope_parameters is \[1\]; expected keys and values or null"),
    ("rope_parameters", {"rope_theta": "big"}, "rope_parameters.rope_theta is 'big'; expected a number"),
    ("rope_scaling", {"rope_type": 3}, "rope_scaling.rope_type is 3; expected text"),
    ("model_type", {}, "model_type is {}; expected text"),
    ("eos_token_id", {"a": 1}, "eos_token_id is {'a': 1}; expected a whole number"),
    ("rms_norm_eps", 10**400, "rms_norm_eps is 1000.*; expected a number"),
])
def test_config_json_is_typed_and_bounded(key, value, message, tmp_path):
    folder = saved(tmp_path / "model")
    edited(folder / "config.json", lambda content: content.update({key: value}))
    with pytest.raises(MixwellError, match=message) as refused:
        mixwell.load(folder)
    assert len(str(refused.value)) < 600 and "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": 1e999}', '{"a": -Infinity}', '{"a": 1, "a": 2}',
                                  "[" * 100_000, '{"a": ' * 100 + "1" + "}" * 100, "1" * 5000, "\ufeff{}", ""])
@pytest.mark.parametrize("name", ["config.json", "mixwell.json", "tokenizer_config.json",
                                  "model.safetensors.index.json"])
def test_json_is_read_strictly(name, text, tmp_path):
    folder = saved(tmp_path / "model")
    (folder / name).write_text(text)
    with pytest.raises(MixwellError, match=f"{name} is not readable as JSON"):
        mixwell.load(folder)


@pytest.mark.parametrize(("content", "message"), [
    ({"weight_map": [1]}, r"weight_map is \[1\]; expected keys and values"),
    ({"weight_map": {"a": None}}, "weight_map, 'a' is None; expected text"),
    ({"weight_map": None}, "weight_map is None"), ({}, "has no weight_map"), ([], "holds no keys and values"),
])
def test_an_index_is_typed(content, message, tmp_path):
    folder = saved(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(MixwellError, match=message):
        mixwell.load(folder)


@pytest.mark.parametrize(("change", "message"), [
    (lambda r: r.update(lineage=None), "lineage is None; expected a list"),
    (lambda r: r.update(lineage=[3]), r"lineage\[0\] is 3; expected keys and values"),
    (lambda r: r.update(arch=[]), r"arch is \[\]; expected keys and values or null"),
    (lambda r: r["lineage"][0].update(tokens=6), "is not what mixwell wrote"),
    (lambda r: r["arch"].update(dim=9), "is not what mixwell wrote"),
])
def test_a_record_is_typed_and_what_was_written(change, message, tmp_path):
    model = build()
    model.lineage = ({"stage": "train", "tokens": 5, "loss": 0.1, 7: (1, 2)},)
    folder = model.save(tmp_path / "model")
    assert mixwell.load(folder).lineage[0] == {"stage": "train", "tokens": 5, "loss": 0.1, "7": [1, 2]}
    edited(folder / "mixwell.json", change)
    with pytest.raises(MixwellError, match=f"mixwell.json.* {message}"):
        mixwell.load(folder)


def test_a_lineage_that_is_no_json_is_told_before_anything_is_written(tmp_path):
    model = build()
    model.lineage = ({"kl": math.nan},)
    with pytest.raises(MixwellError, match="lineage does not fit into JSON"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_changed_config_or_side_file_is_told(tmp_path):
    folder = saved(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixwell.load(folder)
    edited(folder / "config.json", lambda content: content.update(num_experts_per_tok=3))
    with pytest.warns(UserWarning, match=r"is followed: channel_mixer\[0\]\.router\.k is 3, was 2"):
        mixwell.load(folder)
    own = saved(tmp_path / "own", own=True)
    edited(own / "config.json", lambda content: content["arch"].update(norm_eps=0.5))
    with pytest.warns(UserWarning, match="is followed: norm_eps is 0.5, was 1e-05"):
        mixwell.load(own)
    (folder / "merges.txt").write_text("a b\n")
    with pytest.warns(UserWarning, match=r"merges\.txt: not what was saved with this model"):
        mixwell.load(folder)


def test_a_model_larger_than_memory_is_refused_with_its_bytes(tmp_path, monkeypatch):
    folder = saved(tmp_path / "model")
    monkeypatch.setattr(machine, "memory_bytes", lambda: 3000)
    with pytest.raises(MixwellError, match=r"takes 0.0 GiB \(\d+ bytes\); this machine has"):
        mixwell.load(folder)
    monkeypatch.undo()
    wide = {"vocab_size": 2**40, "dim": 8, "num_layers": 2, "num_heads": 2, "channel_mixer": DENSE}
    with pytest.raises(MixwellError, match=r"vocabulary 1099511627776 in float32 takes 65,536.0 GiB"):
        LanguageModel(from_dict(ModelConfig, wide))
    deep = {"vocab_size": 8, "dim": 512, "num_layers": 10**6, "num_heads": 2, "channel_mixer": DENSE}
    with pytest.raises(MixwellError, match=r"a model of 1000000 layers.*takes .* GiB"):
        LanguageModel(from_dict(ModelConfig, deep))


def test_a_file_size_limit_ends_in_one_line(tmp_path):
    model, limits = build(vocab_size=5000), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(MixwellError, match="larger than a file may be here"):
            model.save(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_receipt_of_what_is_no_number_is_refused():
    sound = build().to_checkpoint()
    loud = sound.derive(tensors={**sound.tensors, "head.weight": torch.full((23, 8), 3e38)})
    with pytest.raises(MixwellError, match="some: the model after gives logits that are not finite"):
        measure(sound, loud, TOKENS, "some")
    with pytest.raises(MixwellError, match="some: the model before gives"):
        measure(loud, sound, TOKENS, "some")


@pytest.mark.parametrize("own", [False, True], ids=["mixtral", "mixwell"])
def test_a_flipped_bit_in_a_weight_is_found(own, tmp_path, generator):
    folder = saved(tmp_path / "model", own=own)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    for place in torch.randint(8 * begin, 8 * len(data), (20,), generator=generator).tolist():
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(MixwellError, match=r"is not what was written|expected finite numbers"):
            mixwell.load(folder)
        data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)
    mixwell.load(folder)
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)  # another program may change it
    mixwell.load(folder)


@pytest.mark.parametrize("content", [b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02", b"IQ== 0\nIg== 1\n"])
def test_both_kinds_of_piece_files_come_along(content, tmp_path):
    folder = saved(tmp_path / "model")
    (folder / "tokenizer.model").write_bytes(content)
    assert mixwell.load(folder).files["tokenizer.model"] == content
