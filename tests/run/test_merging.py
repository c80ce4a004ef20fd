"""Merging from Python: what is refused, what is written, what a kill leaves, how it is weighed."""

import itertools
import json
import math
import shutil
import warnings

import pytest
import torch

import mixwell
from mixwell.core.errors import MixwellError
from mixwell.formats import streams
from mixwell.formats.tensors import open_folder, save_tensors
from mixwell.lm import folder as folders
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.merge import merging
from mixwell.run.apply import merge
from tests import faults

MODEL = {"vocab_size": 40, "dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1,
         "channel_mixer": {"method": "swiglu", "hidden_dim": 24}}


def model(seed, **changes):
    config = ModelConfig(**{**MODEL, **changes})
    return LanguageModel(config, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a base and two fine-tunes."""
    root = tmp_path_factory.mktemp("models")
    base = model(0)
    base.save(root / "base")
    for seed, name in ((1, "a"), (2, "b")):
        tuned, draws = model(0), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=draws)
        tuned.save(root / name)
    return root


def tensors_of(path):
    found = open_folder(path)
    return {name: found[name] for name in found}


def test_a_merge_of_folders_is_that_of_its_tensors(models, tmp_path):
    after = merge("merge.linear", [models / "a", models / "b"], options={"weight": [1, 3]}, out=tmp_path / "m")
    a, b, found = (tensors_of(path) for path in (models / "a", models / "b", tmp_path / "m"))
    assert found.keys() == a.keys() and "model.layers.0.self_attn.q_proj.weight" in found
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (a[name] + 3 * b[name]) / 4)
    record = after.lineage[-1]
    assert record["stage"] == "merge" and record["inputs"] == [str(models / "a"), str(models / "b")]
    assert set(record["receipts"]) == {str(models / "a"), str(models / "b")}
    assert all(receipt["max_logit_error"] > 0 for receipt in record["receipts"].values())
    card = (tmp_path / "m" / "README.md").read_text()
    assert 'merge: "linear"' in card and "weight: [1.0, 3.0]" in card and str(models / "a") in card


def test_a_model_in_memory_merges_to_the_same_as_its_folder(models, tmp_path):
    given = [mixwell.load(models / name) for name in ("a", "b")]
    from_memory = mixwell.apply("merge.ties", given, base=mixwell.load(models / "base"), density=0.5)
    from_disk = mixwell.apply("merge.ties", [models / "a", models / "b"], base=models / "base", density=0.5)
    for one, other in zip(from_memory.state_dict().values(), from_disk.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert from_memory.lineage[-1]["method"] == "merge.task_arithmetic"


def test_merging_a_folder_with_itself_gives_it_back(models):
    for name, base in (("slerp", None), ("linear", None), ("ties", models / "a"), ("model_stock", models / "a")):
        found = merge(name, [models / "a", models / "a"], base=base, options={}, weigh=False)
        for tensor, other in zip(found.tensors.values(), folders.read(models / "a").tensors.values()):
            torch.testing.assert_close(tensor, other)


@pytest.mark.parametrize(("changes", "words"), [
    ({"vocab_size": 48}, "vocab_size is 48, was 40"),
    ({"tie_embeddings": True}, "tie_embeddings is True, was False"),
    ({"num_layers": 3}, "num_layers is 3, was 2"),
    ({"channel_mixer": {"method": "swiglu", "hidden_dim": 32}}, "hidden_dim is 32, was 24"),
    ({"channel_mixer": {"method": "moe", "num_experts": 2, "hidden_dim": 24}}, "another model than"),
])
def test_other_architectures_are_named(models, tmp_path, changes, words):
    model(3, **changes).save(tmp_path / "other")
    with pytest.raises(MixwellError, match=words):
        merge("linear", [models / "a", tmp_path / "other"], options={}, out=tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


@pytest.mark.parametrize(("name", "base", "words"), [
    ("ties", None, r"^merge\.ties merges what .*--base FOLDER"),
    ("della", "base", r"^merge\.della, .*density"),
])
def test_a_row_of_a_method_is_called_by_its_own_name(models, name, base, words):
    ground = None if base is None else models / base
    with pytest.raises(MixwellError, match=words):
        dict(merge(name, [models / "a"], base=ground, options={"density": 0.05}, weigh=False).tensors)


def damaged(models, tmp_path, change):
    """A copy of a model with its tensors changed by another program."""
    path = tmp_path / "other"
    shutil.copytree(models / "b", path)
    tensors = {name: tensor.clone() for name, tensor in tensors_of(path).items()}
    change(tensors)
    from safetensors.torch import save_file
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.mark.parametrize(("change", "words"), [
    (lambda t: t["model.norm.weight"].fill_(float("nan")), r"other: model\.norm\.weight holds nan"),
    (lambda t: t.pop("model.norm.weight"), r"model\.norm\.weight is missing"),
    (lambda t: t.update(extra=torch.ones(2)), "extra has no place"),
    (lambda t: t.update({"model.norm.weight": torch.ones(8)}), "has shape"),
    (lambda t: t.update({name: tensor.bfloat16() for name, tensor in t.items()}), "bfloat16"),
])
def test_damaged_models_are_named_and_nothing_is_written(models, tmp_path, change, words):
    path = damaged(models, tmp_path, change)
    with warnings.catch_warnings(), pytest.raises(MixwellError, match=words):
        warnings.simplefilter("ignore")
        merge("linear", [models / "a", path], options={}, out=tmp_path / "m", weigh=False)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["other"]


@pytest.fixture(scope="module")
def narrow(models, tmp_path_factory):
    """The second fine-tune in bfloat16."""
    path = tmp_path_factory.mktemp("narrow") / "b"
    mixwell.load(models / "b").bfloat16().save(path)
    return path


def test_several_types_meet_where_one_is_named(models, narrow, tmp_path):
    both = [models / "a", narrow]
    with pytest.raises(MixwellError, match=r"float32 \[.*\] in .*a and bfloat16 \[.*\] in .*dtype: float32, say"):
        merge("linear", both, options={}, weigh=False)
    found = mixwell.apply("merge.linear", both, dtype="float32", out=tmp_path / "m")
    a, b, made = (tensors_of(path) for path in (models / "a", narrow, tmp_path / "m"))
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, (a[name] + b[name].float()) / 2, rtol=1e-6, atol=1e-7)
    assert found.lineage[-1]["config"]["dtype"] == "float32"
    assert 'dtype: "float32"' in (tmp_path / "m" / "README.md").read_text()
    lower = merge("ties", both, base=models / "base", options={"dtype": "float16"}, out=tmp_path / "low", weigh=False)
    assert {tensor.dtype for tensor in lower.tensors.values()} == {torch.float16}


def test_methods_of_whole_models_take_several_types(models, narrow):
    both = [models / "a", narrow]
    with pytest.raises(MixwellError, match="bfloat16"):
        merge("align", both, options={}, weigh=False)
    found = merge("align", both, options={"dtype": "float32"}, weigh=False)
    wide = mixwell.load(narrow).float()
    expected = merge("align", [mixwell.load(models / "a"), wide], options={}, weigh=False)
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor)


@pytest.mark.parametrize(("name", "options", "words"), [
    ("linear", {"dtype": "int8"}, "dtype: 'int8' is not known; expected bfloat16, float16, float32, float64"),
    ("linear", {"weight": (1, -1)}, "weights sum to 0"),
    ("ties", {"weight": (1, 2, 3)}, "weight lists 3 values for 2 models"),
])
def test_options_that_make_no_sense_are_told(models, name, options, words):
    base = models / "base" if name == "ties" else None
    with pytest.raises(MixwellError, match=words):
        merge(name, [models / "a", models / "b"], base=base, options=options)


def test_another_tokenizer_is_named(models, tmp_path):
    from mixwell.lm.tokenizer import Tokenizer

    for name, text in (("one", "abc abc"), ("two", "xyz xyz")):
        made = mixwell.load(models / "a")
        made.tokenizer = Tokenizer.train([text * 50], 270)
        made.save(tmp_path / name)
    with pytest.raises(MixwellError, match="has other tokens than"):
        merge("linear", [tmp_path / "one", tmp_path / "two"], options={})


def test_a_flipped_bit_is_found(models, tmp_path):
    shutil.copytree(models / "b", tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(MixwellError, match="its checksum is another"):
        merge("linear", [models / "a", tmp_path / "other"], options={}, out=tmp_path / "m", weigh=False)
    assert not (tmp_path / "m").exists()


def test_a_merge_that_is_cut_anywhere_leaves_no_folder_or_the_whole_one(models, tmp_path):
    with faults.recorded(tmp_path) as tape:
        merge("slerp", [models / "a", models / "b"], options={"t": 0.3}, out=tmp_path / "m", weigh=False)
    whole = faults.image_of(tmp_path)
    seen = [{name: data for name, data in image.items() if name.startswith("m/")} for image in tape.images()]
    assert all(image in ({}, whole) for image in seen) and whole in seen


def test_a_killed_merge_leaves_nothing_and_a_second_start_completes(models, tmp_path, monkeypatch):
    counts = itertools.count()
    made = merging.Merged.pieces

    def killed(self, name):
        if next(counts) == 5:
            raise KeyboardInterrupt
        return made(self, name)

    monkeypatch.setattr(merging.Merged, "pieces", killed)
    with pytest.raises(KeyboardInterrupt):
        merge("linear", [models / "a", models / "b"], options={}, out=tmp_path / "m", weigh=False)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    merge("linear", [models / "a", models / "b"], options={}, out=tmp_path / "m", weigh=False)
    assert mixwell.load(tmp_path / "m")


def test_experts_are_matched_by_name_and_by_shape(tmp_path):
    mixer = {"method": "moe", "num_experts": 4, "hidden_dim": 8}
    for seed in (0, 1):
        model(seed, channel_mixer=mixer).save(tmp_path / f"m{seed}")
    found = mixwell.apply("merge.match_experts", [tmp_path / "m0", tmp_path / "m1"], out=tmp_path / "m")
    assert found.lineage[-1]["method"] == "merge.match_experts" and mixwell.load(tmp_path / "m")
    with pytest.raises(MixwellError, match="1 models beside the base"):
        mixwell.apply("merge.match_experts", [tmp_path / "m0"])


@pytest.mark.parametrize("name", ["fisher", "regmean"])
def test_merges_by_text_weigh_parameters_by_what_models_make_of_it(tmp_path, name):
    from mixwell.lm.tokenizer import Tokenizer

    (tmp_path / "text.txt").write_text("some words and some more words\n" * 40)
    given = []
    for seed in (1, 2):
        made = model(seed, vocab_size=257)
        made.tokenizer = Tokenizer.train(["some words"], 257)
        given.append(made)
    with pytest.raises(MixwellError, match="give it"):
        mixwell.apply(f"merge.{name}", given)
    found = mixwell.apply(f"merge.{name}", given, text=tmp_path / "text.txt")
    plain = mixwell.apply("merge.linear", given)
    apart = [float((one - other).abs().max()) for one, other in
             zip(found.state_dict().values(), plain.state_dict().values())]
    told = found.lineage[-1]
    receipt = told["receipts"]["model 1, in memory"]
    assert told["bits_per_byte"].keys() == {"model 1, in memory", "model 2, in memory", "the merge"}
    bytes_a_token = 1.0  # a vocabulary of bytes alone
    expected = receipt["loss_after_nats"] / math.log(2) / bytes_a_token
    assert told["bits_per_byte"]["the merge"] == pytest.approx(expected)
    assert max(apart) > 1e-3 and all(torch.isfinite(t).all() for t in found.state_dict().values())


def test_other_methods_take_one_model(models):
    with pytest.raises(MixwellError, match="takes one model"):
        mixwell.apply("convert.upcycle", [models / "a", models / "b"])
    with pytest.raises(MixwellError, match=r"unknown merge 'merge\.nothing'"):
        mixwell.apply("merge.nothing", [models / "a", models / "b"])


def test_ranges_and_streams_keep_every_bit(tmp_path, generator):
    tensors = {"b": torch.randn(7, 300, generator=generator), "a": torch.arange(5, dtype=torch.int64),
               "c": torch.randn(3, generator=generator).bfloat16(), "e": torch.ones(0, 4)}
    streams.write(tmp_path / "one.safetensors", tensors)
    save_tensors(tmp_path / "two.safetensors", tensors)
    from mixwell.formats.tensors import open_file

    one, two = open_file(tmp_path / "one.safetensors"), open_file(tmp_path / "two.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(one[name], tensor) and torch.equal(two[name], tensor)
        assert one.sum(name) == two.sum(name) is not None
    part = torch.empty(100)
    one.read_range("b", 333, part)
    assert torch.equal(part, tensors["b"].flatten()[333:433])
    header = (tmp_path / "one.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert length % 8 == 0 and json.loads(header[8 : 8 + length])["a"]["dtype"] == "I64"
