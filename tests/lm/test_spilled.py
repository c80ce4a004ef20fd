"""Conversions in the memory of a layer: the same bits as in memory, every tensor accounted for, nothing left behind."""

import importlib
import itertools
import os

import pytest
import torch

import mixwell
from mixwell.convert._parts import Rewrite
from mixwell.core import disk, registry
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.formats.declared import Fresh, form_of
from mixwell.lm import folder as folders
from mixwell.lm import spilled
from mixwell.lm.config import ModelConfig
from mixwell.lm.conversion import account_of, convert
from mixwell.lm.model import LanguageModel
from mixwell.lm.spilled import Spill, Unread, beside, unread
from tests.contracts._conversions import calibration, whole
from tests.contracts._tools import cases, fresh
from tests.contracts.test_conversions import other


class Stored(Fresh):
    """Tensors that lie elsewhere; counts what was read."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.tensors, self.read = tensors, []

    def __getitem__(self, name):
        self.read.append(name)
        return self.tensors[name].clone()

    def form(self, name):
        return form_of(self.tensors, name)


def stored(checkpoint):
    return checkpoint.derive(tensors=Stored(checkpoint.tensors))


@pytest.fixture
def everything_spilled(monkeypatch):
    monkeypatch.setattr(spilled, "SMALL_BYTES", 0)


@pytest.mark.parametrize("entry", cases("convert"))
def test_a_streamed_conversion_gives_the_same_bits(entry, tmp_path, everything_spilled):
    values = entry.module().example(fresh())
    source = whole(values["checkpoint"])
    usual = convert(entry, source, values["config"], fresh(1), calibration(models=other))
    given = stored(source)
    after = convert(entry, given, values["config"], fresh(1), calibration(models=other), Spill(tmp_path))
    assert after.arch == usual.arch and list(after.tensors) == list(usual.tensors)
    for name, tensor in usual.tensors.items():
        found = after.tensors[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found.detach(), tensor)
    assert account_of(given, after) == account_of(source, usual)


@pytest.mark.parametrize("split", ["random", "clustered"])
def test_layers_wait_on_the_disk_and_nobody_holds_them(split, tmp_path, everything_spilled):
    source = stored(mixture("swiglu"))
    options = {"num_experts": 4, "split": split}
    after = made("convert.carve", source, options, Spill(tmp_path))
    inside = [tensor for name, tensor in after.tensors.items() if ".channel_mixer." in name]
    assert inside and all(isinstance(tensor, Unread) for tensor in inside)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == sum(tensor.nbytes for tensor in inside)


def test_copies_of_one_expert_take_the_room_of_one(tmp_path, everything_spilled):
    source = stored(mixture("swiglu"))
    after = made("convert.upcycle", source, {"num_experts": 4}, Spill(tmp_path))
    dense = sum(tensor.nbytes for name, tensor in source.tensors.tensors.items() if ".channel_mixer." in name)
    routers = sum(tensor.nbytes for name, tensor in after.tensors.items() if ".router." in name)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == dense + routers
    stacked = after.tensors["layers.1.channel_mixer.down_proj"]
    assert all(torch.equal(expert, stacked[0]) for expert in stacked)


def test_a_tensor_is_read_when_its_numbers_are_asked_for_and_never_written_into():
    source = Stored({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3)})
    held = unread(Checkpoint({}, source)).tensors
    assert held["a"].shape == (2, 3) and held["b"].nbytes == 12 and not source.read
    assert torch.equal(held["a"] @ held["b"], torch.tensor([3.0, 12.0]))
    assert torch.equal(held["a"][1], torch.tensor([3.0, 4.0, 5.0])) and source.read == ["a", "b"]
    with pytest.raises(RuntimeError, match="writes into a tensor of the source"):
        held["a"].add_(1)
    target = torch.zeros(2, 3)
    target.copy_(held["a"])
    assert torch.equal(target, source.tensors["a"])


def mixture(method, **options):
    mixer = {"method": method, "hidden_dim": 8} | options
    config = ModelConfig(vocab_size=13, dim=16, num_layers=2, num_heads=2, channel_mixer=mixer)
    return LanguageModel(config, fresh(3)).to_checkpoint()


def made(name, source, options, spill):
    entry = registry.find(name)
    config = from_dict(entry.module().Config, options)
    return convert(entry, source, config, fresh(1), calibration(), spill)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return folders.write(mixture("swiglu"), tmp_path_factory.mktemp("models") / "dense")


def test_a_folder_is_converted_and_nothing_stays_beside_it(model_folder, tmp_path, everything_spilled):
    out = tmp_path / "moe"
    found = mixwell.apply("convert.upcycle", model_folder, out=out, num_experts=4, noise=0.1)
    again = mixwell.load(out)
    assert all(torch.equal(p, again.state_dict()[n]) for n, p in found.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["moe"]
    assert folders.read(out).lineage[-1]["receipt"]["tensors"]["used"] == 4


class Killed(BaseException):
    """The end of a process, as far as a test can play it."""


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_conversion_that_was_killed_leaves_no_folder_and_a_second_one_completes(after, model_folder, tmp_path,
                                                                                  monkeypatch, everything_spilled):
    written = itertools.count()
    write = spilled._write

    def dies(path, tensor):
        if next(written) == after:
            raise Killed
        write(path, tensor)

    monkeypatch.setattr(spilled, "_write", dies)
    monkeypatch.setattr(disk, "remove", lambda path: None)  # a process that is killed removes nothing
    monkeypatch.setattr(os, "getpid", lambda: 2**31 - 1)  # which no process has
    out = tmp_path / "moe"
    with pytest.raises(Killed):
        mixwell.apply("convert.carve", model_folder, out=out, num_experts=4)
    assert not out.exists() and len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    mixwell.apply("convert.carve", model_folder, out=out, num_experts=4)
    assert [path.name for path in tmp_path.iterdir()] == ["moe"] and mixwell.load(out).num_parameters() > 0


def test_an_expert_that_is_left_out_or_unwritten_is_refused_as_it_is_in_memory(tmp_path, monkeypatch,
                                                                               everything_spilled):
    module = importlib.import_module("mixwell.convert.upcycle")
    source = stored(mixture("swiglu"))

    def unwritten(gate_up, down, config, generator):
        gate_up_E = torch.empty(4, *gate_up.shape)
        gate_up_E[:3] = gate_up
        return gate_up_E, module.copies(down, 4)

    monkeypatch.setattr(module, "experts", unwritten)
    with pytest.raises(MixwellError, match=r"layers\.0.*gate_up_proj with values that are not finite, in expert 3"):
        made("convert.upcycle", source, {"num_experts": 4}, Spill(tmp_path))

    def without(gate_up, down, config, generator):
        gate_up_E = module.copies(gate_up, 4).clone()
        gate_up_E[2] = 0
        return gate_up_E, module.copies(down, 4)

    monkeypatch.setattr(module, "experts", without)
    with pytest.raises(MixwellError, match=r"left expert 2 of layers\.0.*gate_up_proj at zero"):
        made("convert.upcycle", source, {"num_experts": 4}, Spill(tmp_path))


def test_a_tensor_that_a_streamed_method_loses_is_named(tmp_path, monkeypatch, everything_spilled):
    drop = Rewrite.drop

    def forgets(work, layer, start, rule):
        drop(work, layer, start, rule)
        work.dropped.clear()

    monkeypatch.setattr(Rewrite, "drop", forgets)
    source = stored(mixture("moe", num_experts=4))
    with pytest.raises(MixwellError, match=r"densify lost layers\.0\.channel_mixer\.router\.weight and 1 more"):
        made("convert.densify", source, {"how": "sum"}, Spill(tmp_path))


def test_room_is_asked_for_on_the_disk_that_has_it(tmp_path):
    with beside(None) as none:
        assert none is None
    with beside(tmp_path / "deep" / "m") as spill:
        large, small = spill.kept(torch.ones(2**15)), spill.kept(torch.ones(2))
        assert isinstance(large, Unread) and not isinstance(small, Unread) and torch.equal(large[:2], small)
        assert spill.kept(torch.zeros(2**15, requires_grad=True)).requires_grad
    assert not list((tmp_path / "deep").iterdir())
