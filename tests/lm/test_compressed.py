"""Folders in the layout of compressed-tensors, both ways; the package itself judges where it is installed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import mixwell
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.kernels.codes import real_scale
from mixwell.lm import folder as folders
from mixwell.lm.compressed.packing import packed, unpacked, words_of
from mixwell.lm.compressed.writing import write_compressed
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.precision import blockwise, half, int8, integers, mxfp4, nf4

TOKENS = torch.arange(16).view(2, 8) % 13
MIXTURE = {"method": "moe", "num_experts": 3, "hidden_dim": 16, "router": {"method": "top_k", "k": 2}}
WAYS = {
    "int8": (int8.int8, int8.Config()),
    "w4": (integers.integers, integers.Config(group_size=8)),
    "w5, zero points": (integers.integers, integers.Config(bits=5, group_size=8, symmetric=False)),
    "w3, whole rows, head": (integers.integers, integers.Config(bits=3, group_size=0, head=True)),
    "w8a8": (integers.integers, integers.Config(bits=8, group_size=0, input_bits=8)),
    "w4a8, zero points": (integers.integers, integers.Config(group_size=8, symmetric=False, input_bits=8)),
}


@pytest.fixture(scope="module")
def source():
    """A mixture of width 16, tensors in float32."""
    config = ModelConfig(vocab_size=13, dim=16, num_layers=1, num_heads=2, channel_mixer=MIXTURE)
    return LanguageModel(config, generator(3)).to_checkpoint()


def small(source, way):
    method, config = WAYS[way]
    return method(source, config, generator(0))


def with_part(source, part):
    """Whole-number codes beside which a part stands that makes them something else."""
    made = small(source, "w4")
    name = f"layers.0.channel_mixer.down_proj.{part}"
    return made.derive(tensors={**made.tensors, name: torch.zeros(3, 16, dtype=torch.int32)})


def logits(checkpoint):
    with torch.no_grad():
        return LanguageModel.from_checkpoint(checkpoint).eval()(TOKENS).logits_BTV


def test_the_words_are_those_that_others_write():
    q = torch.tensor([[1, 3, -3, -4, 2, 0, 6, 0]])
    word = packed((q + 8).to(torch.uint8), 4)
    assert word.dtype == torch.int32 and word.item() & 0xFFFFFFFF == 0x8E8A45B9


@pytest.mark.parametrize("bits", [1, 3, 4, 5, 8])
def test_codes_are_one_stream_of_bits(bits):
    codes = torch.randint(0, 2**bits, (3, 21), generator=generator(bits), dtype=torch.uint8)
    words = packed(codes, bits)
    assert words.shape == (3, words_of(21, bits))
    for row, line in zip(codes.tolist(), words.tolist()):
        stream = sum(code << (bits * place) for place, code in enumerate(row))
        expected = [(stream >> (32 * word)) & 0xFFFFFFFF for word in range(len(line))]
        assert [word & 0xFFFFFFFF for word in line] == expected
    assert torch.equal(unpacked(words, bits, 21), codes)


@pytest.mark.parametrize("way", WAYS)
def test_both_ways_keep_every_code(source, way, tmp_path):
    before = small(source, way)
    after = folders.read(write_compressed(before, tmp_path / "out"))
    assert set(after.tensors) == set(before.tensors) and after.lineage == before.lineage
    for name, value in before.tensors.items():
        read = after.tensors[name]
        assert torch.equal(read.to(value.dtype), value), name
        form = after.tensors.form(name)
        assert (form.dtype, form.shape) == (read.dtype, tuple(read.shape)), name
    assert torch.equal(logits(after), logits(before))


def test_scales_that_are_powers_of_two_are_written_as_numbers(source, tmp_path):
    config = blockwise.Config(group_size=8, rows=0, others=0, input_bits=0)
    before = blockwise.blockwise(source, config, generator(0))
    name = "layers.0.channel_mixer.down_proj"
    assert before.tensors[f"{name}.scale"].dtype == torch.uint8
    after = folders.read(write_compressed(before, tmp_path / "out"))
    assert torch.equal(after.tensors[f"{name}.scale"], real_scale(before.tensors[f"{name}.scale"]))
    assert torch.equal(logits(after), logits(before))


def test_what_lies_in_the_folder(source, tmp_path):
    folder = write_compressed(small(source, "w4"), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    said = config["quantization_config"]
    assert config["model_type"] == "mixtral" and said["quant_method"] == "compressed-tensors"
    assert (said["format"], said["quantization_status"]) == ("pack-quantized", "compressed")
    assert sorted(said["ignore"]) == ["lm_head", "model.layers.0.block_sparse_moe.gate"]
    weights = said["config_groups"]["group_0"]["weights"]
    assert {key: weights[key] for key in ("num_bits", "type", "strategy", "group_size", "symmetric")} == {
        "num_bits": 4, "type": "int", "strategy": "group", "group_size": 8, "symmetric": True}
    tensors = load_file(folder / "model.safetensors")
    stem = "model.layers.0.block_sparse_moe.experts.2.w3"
    assert tensors[f"{stem}.weight_shape"].tolist() == [16, 16] and f"{stem}.weight" not in tensors
    numbers = unpacked(tensors[f"{stem}.weight_packed"], 4, 16).float() - 8
    plain = (numbers.view(16, 2, 8) * tensors[f"{stem}.weight_scale"].unsqueeze(-1)).view(16, 16)
    up = source.tensors["layers.0.channel_mixer.gate_up_proj"][2, 16:]
    step = tensors[f"{stem}.weight_scale"].repeat_interleave(8, 1)
    assert bool(((plain - up).abs() <= step * 0.51).all()) and not torch.equal(plain, up)


def test_a_head_that_is_the_embedding_is_left_alone(tmp_path):
    """It has no matrix of its own in the folder, and is a linear map to others all the same."""
    config = ModelConfig(vocab_size=13, dim=16, num_layers=1, num_heads=2, tie_embeddings=True, channel_mixer=MIXTURE)
    tied = LanguageModel(config, generator(3)).to_checkpoint()
    folder = write_compressed(small(tied, "w4"), tmp_path / "out")
    said = json.loads((folder / "config.json").read_text())
    assert said["tie_word_embeddings"] and "lm_head" in said["quantization_config"]["ignore"]
    assert not any(name.startswith("lm_head") for name in load_file(folder / "model.safetensors"))
    assert torch.equal(logits(folders.read(folder)), logits(small(tied, "w4")))


def test_rounded_inputs_take_a_byte_a_code(source, tmp_path):
    folder = write_compressed(small(source, "w8a8"), tmp_path / "out")
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    inputs = said["config_groups"]["group_0"]["input_activations"]
    assert (said["format"], inputs["num_bits"], inputs["strategy"], inputs["dynamic"]) == (
        "int-quantized", 8, "token", True)
    found = load_file(folder / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert found.dtype == torch.int8 and found.shape == (16, 16)


def damaged(folder, name=None, value=None, **keys):
    """The folder with a tensor replaced (taken out by None), or with other keys in one place of its config."""
    if name is not None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors.pop(name)
        save_file(tensors if value is None else {**tensors, name: value}, path)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    said = config["quantization_config"]
    for place, changed in keys.items():
        *way, last = place.split("__")
        inner = said
        for step in way:
            inner = inner[step]
        inner[last] = changed
    path.write_text(json.dumps(config))
    (folder / "mixwell.json").unlink()
    return folder


def test_a_folder_of_others_with_a_scale_for_a_whole_matrix_and_a_whole_one(source, tmp_path):
    folder = write_compressed(small(source, "w8a8"), tmp_path / "out")
    path, stem = folder / "model.safetensors", "model.layers.0.self_attn.q_proj"
    tensors = {name: (torch.tensor([0.01]) if name.endswith("weight_scale") else value)
               for name, value in load_file(path).items()}
    code = tensors[f"{stem}.weight"][3, 5].item()
    tensors[f"{stem}.weight"] = tensors[f"{stem}.weight"].float()  # this one is whole: so is the matrix of all three
    tensors.pop(f"{stem}.weight_scale")
    save_file(tensors, path)
    damaged(folder, config_groups__group_0__weights__strategy="tensor", config_groups__group_0__input_activations=None)
    read = folders.read(folder)
    qkv = read.tensors["layers.0.sequence_mixer.qkv.weight"]
    assert qkv.dtype == torch.float32 and qkv[3, 5] == code
    assert "layers.0.sequence_mixer.qkv.weight.scale" not in read.tensors
    steps = qkv[16:] / 0.01
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    out = read.tensors["layers.0.sequence_mixer.out.weight.scale"]
    assert out.shape == (16, 1) and torch.allclose(out, torch.full((16, 1), 0.01))
    assert bool(logits(read).isfinite().all())


Q = "model.layers.0.self_attn.q_proj"
GROUP = "config_groups__group_0"


@pytest.mark.parametrize(("change", "message"), [
    ({"name": f"{Q}.weight_scale", "value": torch.ones(16, 3)}, r"q_proj.weight_scale has shape \[16, 3\]; expected"),
    ({"name": f"{Q}.weight_scale", "value": torch.zeros(16, 2)}, "q_proj.weight_scale holds 0; expected numbers above"),
    ({"name": f"{Q}.weight_shape"}, "q_proj.weight_shape is missing"),
    ({"name": f"{Q}.weight_packed"}, "q_proj.weight_packed is missing"),
    ({"name": f"{Q}.weight_shape", "value": torch.tensor([16, 8])}, r"q_proj.weight has shape \[16, 8\]; expected"),
    ({f"{GROUP}__weights__group_size": 5}, "groups of 5 do not fill rows of 16"),
    ({f"{GROUP}__weights__num_bits": 9}, "num_bits is 9; expected 1 to 8"),
    ({f"{GROUP}__weights__type": "float"}, "weights.type is 'float'; 'int' is read"),
    ({f"{GROUP}__weights__symmetric": False}, "q_proj.weight_zero_point is missing"),
    ({f"{GROUP}__weights__actorder": "group"}, "actorder is 'group'"),
    ({f"{GROUP}__format": "float-quantized"}, "format is 'float-quantized'; 'pack-quantized' or 'int-quantized'"),
    ({f"{GROUP}__input_activations": {"num_bits": 8, "dynamic": False}}, "input_activations.dynamic is False"),
    ({f"{GROUP}__input_activations": {"num_bits": 1}}, "num_bits is 1; expected 2 to 8"),
    ({f"{GROUP}__output_activations": {"num_bits": 8}}, "output_activations is"),
    ({f"{GROUP}__weights": None}, "weights is None; expected keys"),
    ({"config_groups": {}}, "expected at least one group"),
    ({"config_groups": {"a": []}}, "config_groups.a is"),
    ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme is"),
    ({"quantization_status": "frozen"}, "quantization_status is 'frozen'"),
])
def test_folders_that_say_something_else_are_refused(source, tmp_path, change, message):
    folder = damaged(write_compressed(small(source, "w4"), tmp_path / "out"), **change)
    with pytest.raises(MixwellError, match=message):
        mixwell.load(folder)


def test_groups_that_differ_and_codes_of_too_many_bits_are_refused(source, tmp_path):
    folder = write_compressed(small(source, "w4a8, zero points"), tmp_path / "out")
    said = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    narrow = {**said, "weights": {**said["weights"], "num_bits": 3}}
    with pytest.raises(MixwellError, match="2 groups that differ"):
        folders.read(damaged(folder, config_groups={"a": said, "b": narrow}))
    again = write_compressed(small(source, "w4a8, zero points"), tmp_path / "again")
    with pytest.raises(MixwellError, match=r"q_proj\.weight holds numbers of more than 3 bits"):
        mixwell.load(damaged(again, config_groups={"a": narrow}))


@pytest.mark.parametrize(("make", "message"), [
    (lambda c: c, "the model's weights are whole"),
    (lambda c: half.half(c, half.Config(), generator(0)), "the model's weights are whole"),
    (lambda c: nf4.nf4(c, nf4.Config(group_size=8), generator(0)), "codes into a table"),
    (lambda c: mxfp4.mxfp4(c, mxfp4.Config(group_size=8), generator(0)), "codes into a table"),
    *((lambda c, part=part: with_part(c, part), words) for part, words in (
        ("codebooks", "sums of words"), ("order", "an order of its own"), ("block_bits", "block by block"))),
    (lambda c: integers.integers(c, integers.Config(group_size=8), generator(0)).derive(
        arch={**c.arch, "channel_mixer": {**MIXTURE, "method": "experts.layers.soft_moe"}}), "no Hugging Face decoder"),
])
def test_what_the_layout_does_not_say_is_refused(source, make, message, tmp_path):
    with pytest.raises(MixwellError, match=message):
        write_compressed(make(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_ways_in_one_model_are_refused(source, tmp_path):
    four = small(source, "w4")
    three = integers.integers(source, integers.Config(bits=3, group_size=8), generator(0))
    name = "layers.0.sequence_mixer.out.weight"
    own = {key: value for key, value in three.tensors.items() if key.startswith(name)}
    with pytest.raises(MixwellError, match=r"out\.weight is quantised in another way than .*3 bits, groups of 8"):
        write_compressed(four.derive(tensors={**four.tensors, **own}), tmp_path / "out")


def test_the_command_writes_the_folder_and_refuses_a_file(source, tmp_path):
    folder = folders.write(small(source, "w4"), tmp_path / "small")
    out = mixwell.export(folder, tmp_path / "out", type="compressed-tensors")
    assert torch.equal(logits(folders.read(out)), logits(small(source, "w4")))
    with pytest.raises(MixwellError, match=r"is a folder; expected a name without \.gguf"):
        mixwell.export(folder, tmp_path / "x.gguf", type="compressed-tensors")


@pytest.mark.parametrize("way", WAYS)
def test_the_package_makes_the_same_numbers(source, way, tmp_path):
    package = pytest.importorskip("compressed_tensors")
    folder = write_compressed(small(source, way), tmp_path / "out")
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = package.quantization.QuantizationConfig.model_validate(said)
    scheme = config.config_groups["group_0"]
    compressor = package.compressors.BaseCompressor.get_value_from_registry(said["format"])
    tensors = load_file(folder / "model.safetensors")
    for place, stem, rows in (("sequence_mixer.out.weight", "self_attn.o_proj", slice(None)),
                              ("channel_mixer.gate_up_proj", "block_sparse_moe.experts.1.w3", slice(16, None))):
        prefix = f"model.layers.0.{stem}."
        parts = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        theirs = compressor.decompress(parts, scheme)["weight"]
        model = LanguageModel.from_checkpoint(small(source, way))
        whole, attribute = model.layers[0].get_submodule(place.rpartition(".")[0]), place.rpartition(".")[2]
        scale, weight = getattr(whole, f"{attribute}_scale"), getattr(whole, attribute)
        ours = mixwell_weight(whole, attribute, weight, scale)
        torch.testing.assert_close(theirs, ours[1, rows] if ours.ndim == 3 else ours, rtol=1e-6, atol=0)


def mixwell_weight(owner, attribute, weight, scale):
    from mixwell.kernels.codes import PARTS, coded

    if weight.dtype == torch.int8:
        return weight.float() * scale
    parts = {part: getattr(owner, f"{attribute}_{part}") for part in PARTS if hasattr(owner, f"{attribute}_{part}")}
    return coded(weight.data, parts).dequantised(torch.float32)


@pytest.mark.parametrize("way", ["int8", "w4"])
def test_transformers_gives_the_same_logits(source, way, tmp_path):
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    folder = write_compressed(small(source, way), tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, logits(small(source, way)), rtol=1e-5, atol=1e-6)
