"""Conversions whose result has no room, refused before anything is made; models weighed a layer at a time."""

import shutil
from collections import namedtuple

import pytest
import torch

import mixwell
from mixwell.core import registry
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.lm import weights
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.lm.streamed import streamed
from mixwell.run.room import check_room, sketch

MODEL = {"vocab_size": 40, "dim": 16, "num_layers": 2, "num_heads": 2}
TOKENS = torch.arange(24).view(2, 12) % 40


def model(**mixer):
    channel = {"method": "swiglu", "hidden_dim": 24} | mixer
    return LanguageModel(ModelConfig(**MODEL, channel_mixer=channel), torch.Generator().manual_seed(0)).eval()


def settled(name, **options):
    entry = registry.find(name)
    return entry, from_dict(entry.module().Config, options)


@pytest.mark.parametrize("options", [{"num_experts": 10**8}, {"num_experts": 10**8, "noise": 0.1},
                                     {"num_experts": 10**8, "reinitialise": 0.5}])
def test_more_experts_than_any_memory_are_refused_at_once(options, tmp_path):
    with pytest.raises(MixwellError, match=r"num_experts = 100000000, 6 rows of 16 numbers for each, takes .* GiB"):
        mixwell.apply("convert.upcycle", model(), out=tmp_path / "m", **options)
    assert not list(tmp_path.iterdir())


def test_a_result_is_sketched_without_numbers_and_weighed_against_memory_and_disk(monkeypatch, tmp_path):
    before = model().to_checkpoint()
    for options in ({"num_experts": 8}, {"num_experts": 8, "noise": 0.1}, {"num_experts": 4, "granularity": 2}):
        entry, config = settled("convert.upcycle", **options)
        made = sketch(entry, before, config)
        assert made is not None and all(t.is_meta for name, t in made.tensors.items() if "router" not in name)
        real = entry.load()(before, config, torch.Generator().manual_seed(0))
        assert {n: t.shape for n, t in made.tensors.items()} == {n: t.shape for n, t in real.tensors.items()}
    size = sum(tensor.nbytes for tensor in real.tensors.values())
    monkeypatch.setattr(weights, "memory_bytes", lambda: size - 1)
    with pytest.raises(MixwellError, match=r"convert\.upcycle: the result takes"):
        check_room(entry, before, config)
    monkeypatch.setattr(weights, "memory_bytes", lambda: size)
    check_room(entry, before, config)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, size - 1))
    with pytest.raises(MixwellError, match="GiB free"):
        check_room(entry, before, config, tmp_path / "deep" / "m")


@pytest.mark.parametrize("mixer", [{}, {"method": "moe", "num_experts": 4}])
def test_a_model_read_by_layers_gives_the_logits_of_a_whole_one_and_keeps_no_matrix(mixer):
    whole = model(**mixer)
    parts = streamed(whole.to_checkpoint())
    inside = [parameter for name, parameter in parts.named_parameters()
              if name.startswith("layers.") and parameter.ndim > 1 and ".router." not in name]
    with torch.no_grad():
        for _ in range(2):
            found, expected = parts(TOKENS), whole(TOKENS)
            assert torch.equal(found.logits_BTV, expected.logits_BTV)
    assert len(inside) >= 8
    assert all(p.is_meta for n, p in parts.named_parameters()
               if n.startswith("layers.") and p.ndim > 1 and ".router." not in n)
    assert parts.num_parameters() == whole.num_parameters()


def test_what_is_wrong_with_a_layer_is_told_as_it_is_read():
    checkpoint = model().to_checkpoint()
    bad = {name: tensor.detach().clone() for name, tensor in checkpoint.tensors.items()}
    bad["layers.1.channel_mixer.down_proj"][0, 0] = torch.nan
    with pytest.raises(MixwellError, match=r"layers\.1\.channel_mixer\.down_proj holds nan"), torch.no_grad():
        streamed(checkpoint.derive(tensors=bad))(TOKENS)
