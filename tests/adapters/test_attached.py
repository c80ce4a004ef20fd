"""Targets by pattern, and adapters that are put beside a model, saved and refused."""

import copy
import json
from dataclasses import dataclass

import pytest
import torch

from mixwell.adapters import files
from mixwell.adapters._parts import LayerAdapter
from mixwell.adapters.ia3 import IA3
from mixwell.adapters.ia3 import Config as Factors
from mixwell.adapters.lora import Config, LoRA
from mixwell.adapters.targets import find, fits
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.rng import generator as seeded
from mixwell.formats import sealed
from mixwell.formats.tensors import open_file, save_tensors
from mixwell.mixing import build_router
from tests.contracts._adapters import TOKENS, logits, model, moved

NAME = "layers.0.sequence_mixer.qkv.weight"


@pytest.mark.parametrize("pattern", [NAME, NAME.removesuffix(".weight"), "qkv", "qkv.weight", "sequence_mixer.qkv",
                                     "layers.0.*", "*qkv*", r"re:.*\.(qkv|out)", "all-linear"])
def test_a_pattern_fits(pattern):
    assert fits(NAME, pattern)


@pytest.mark.parametrize("pattern", ["kv", "layers.0", "layers.1.*", "re:qkv", "re:layers", "weight.qkv"])
def test_a_pattern_fits_not(pattern):
    assert not fits(NAME, pattern)


def test_targets_are_found_in_the_models_order_with_stacks():
    found = find(model(sparse=True), ["down_proj", "layers.0.*"])
    assert [t.name.rpartition("mixer.")[2] for t in found] == [
        "qkv.weight", "out.weight", "gate_up_proj", "down_proj", "shared_gate_up_proj", "shared_down_proj", "down_proj"]
    assert found[2].stack == (4,) and (found[2].outputs, found[2].inputs) == (48, 16)


@pytest.mark.parametrize("pattern, message", [
    ("qvk", r"nothing in the model fits 'qvk'. Did you mean 'qkv'|nothing in the model fits 'qvk'"),
    ("head", "fits head.weight, which is not multiplied as a plain matrix"),
    ("re:(", "'re:\\(' is no regular expression")])
def test_a_pattern_that_chooses_nothing_is_refused(pattern, message):
    with pytest.raises(MixwellError, match=message):
        find(model(tie_embeddings=False), ["qkv", pattern])


def test_no_pattern_at_all_is_refused():
    with pytest.raises(MixwellError, match="targets: no pattern came"):
        LoRA.attach(model(), [], Config(rank=2), seeded(3))


def test_one_adapter_a_target_and_no_checkpoint_without_it():
    there = LoRA.attach(model(), "qkv", Config(rank=2), seeded(3))
    IA3.attach(there.model, "down_proj", Factors(), seeded(3))
    with pytest.raises(MixwellError, match=rf"{NAME} has an adapter already"):
        IA3.attach(there.model, "qkv", Factors(), seeded(3))
    with pytest.raises(MixwellError, match=r"carries an adapter .* which a checkpoint would lose"):
        there.model.to_checkpoint()


def test_a_base_that_is_not_finite_is_refused():
    network = model()
    with torch.no_grad():
        network.layers[0].sequence_mixer.qkv.weight[0, 0] = torch.nan
    with pytest.raises(MixwellError, match=f"{NAME} has values that are not finite"):
        LoRA.attach(network, None, Config(), seeded(3))


def test_merging_twice_and_taking_out_nothing_are_refused():
    there = LoRA.attach(model(), None, Config(rank=2), seeded(3))
    with pytest.raises(MixwellError, match="is not merged; there is nothing to take out"):
        there.unmerge()
    there.merge()
    with pytest.raises(MixwellError, match="is merged already"):
        there.merge()


def test_parts_trained_as_they_are_belong_to_the_adapter(tmp_path):
    there = LoRA.attach(model(), "qkv", Config(rank=2), seeded(3), trained=["sequence_norm", "embed"])
    names = {"embed.weight", "layers.0.sequence_norm.weight", "layers.1.sequence_norm.weight"}
    assert set(there.trained) == names
    moved(there)
    apart = logits(there.model)
    files.save(there, tmp_path / "saved")
    again = files.load(tmp_path / "saved", model())
    assert torch.equal(logits(again.model), apart)
    again.detach()
    assert torch.equal(logits(again.model), logits(model()))
    with pytest.raises(MixwellError, match="no parameter fits 'norms'"):
        LoRA.attach(model(), "qkv", Config(rank=2), seeded(3), trained=["norms"])


def test_a_refused_part_leaves_the_model_trainable():
    network = model()
    with pytest.raises(MixwellError, match="no parameter fits 'norms'"):
        LoRA.attach(network, "qkv", Config(rank=2), seeded(3), trained=["norms"])
    assert all(p.requires_grad for p in network.parameters())


def test_a_bias_that_is_trained_and_merged_is_kept_as_it_was_trained(tmp_path):
    there = moved(IA3.attach(model(), "qkv", Factors(), seeded(3), trained=["qkv.bias"]))
    apart = logits(there.model)
    before = {name: value.clone() for name, value in there.tensors().items()}
    there.merge()
    assert before.keys() == there.tensors().keys()
    assert all(torch.equal(value, before[name]) for name, value in there.tensors().items())
    files.save(there, tmp_path / "saved")
    again = files.load(tmp_path / "saved", model())
    assert torch.equal(logits(again.model), apart)


def test_what_was_detached_is_neither_merged_nor_detached_again():
    there = moved(LoRA.attach(model(), "qkv", Config(rank=2), seeded(3)))
    there.detach()
    for again in (there.merge, there.detach):
        with pytest.raises(MixwellError, match="was detached; attach it anew"):
            again()
    assert torch.equal(logits(there.model), logits(model()))


@pytest.fixture
def saved(tmp_path):
    there = moved(LoRA.attach(model(), "qkv", Config(rank=2), seeded(3)))
    return files.save(there, tmp_path / "saved", "runs/mine:base")


def test_another_base_is_refused_unless_meant(saved):
    other = model()
    with torch.no_grad():
        other.norm.weight.mul_(2)
    with pytest.raises(MixwellError, match=r"made for another base \(runs/mine:base\): the weights' digest"):
        files.load(saved, other)
    assert not any("adapters" in name for name in other.state_dict())
    assert all(p.requires_grad for p in other.parameters())
    files.load(saved, other, other_base=True)
    with pytest.raises(MixwellError, match=r"the file has \[2, 16\], this base takes \[2, 24\]"):
        files.load(saved, model(dim=24), other_base=True)


def test_a_base_in_another_type_is_the_same_base():
    tensors = {"a": torch.randn(4, 5, generator=seeded(1)).bfloat16()}
    wide = {name: value.float() for name, value in tensors.items()}
    assert files.digest(tensors) == files.digest(wide)
    assert files.digest(tensors) != files.digest({"b": wide["a"]})


@pytest.mark.parametrize("damage, message", [
    (lambda t: {**t, f"{NAME}/A": t[f"{NAME}/A"] * torch.nan}, "has values that are not finite"),
    (lambda t: {n: v for n, v in t.items() if n != f"{NAME}/B"}, f"{NAME}/B is missing in the file"),
    (lambda t: {**t, "layers.7/A": t[f"{NAME}/A"]}, "layers.7/A has no place in this adapter")])
def test_damaged_tensors_are_refused(saved, damage, message):
    tensors = dict(open_file(saved / files.TENSORS))
    save_tensors(saved / files.TENSORS, damage(tensors))
    with pytest.raises(MixwellError, match=message):
        files.load(saved, model())


def test_a_changed_or_unknown_file_is_refused(saved):
    path = saved / files.FILE
    content = sealed.read(path, "")
    path.write_text(json.dumps(content))
    with pytest.raises(MixwellError, match="holds no digest"):
        files.load(saved, model())
    sealed.write(path, {**content, "method": "adapters.none"})
    with pytest.raises(MixwellError, match=r"unknown method 'adapters.none'"):
        files.load(saved, model())


@dataclass(frozen=True)
class Share:
    """Options of the layer below."""

    coefficient: float = 0.5


@method(title="A second block beside the first", year=2026)
class Beside(LayerAdapter):
    """y + w(x) B A x with a router of one expert, and a loss: what a routed method looks like."""

    targets = ("channel_mixer",)

    def __init__(self, target, config, generator):
        super().__init__(target, config)
        dim = target.owner.dim
        self.router = build_router({"method": "top_k", "k": 1}, dim, 2, generator)
        self.A = torch.nn.Parameter(torch.randn(2, dim, generator=generator))
        self.B = torch.nn.Parameter(torch.zeros(dim, 2))

    def forward(self, x_TD, context):
        mixed = self.base(x_TD, context)
        routing = self.router(x_TD, context)
        loss = routing.scores_TE.square().mean()
        self.report({"own": loss}, self.config.coefficient * loss)
        more = routing.weights_TK[:, :1] * (x_TD @ self.A.T @ self.B.T)
        return mixed._replace(y_TD=mixed.y_TD + more)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_layer_as_a_whole_can_be_changed_and_its_losses_are_outputs(sparse, tmp_path):
    bare = model(sparse)
    before = bare(TOKENS)
    there = Beside.attach(model(sparse), None, Share(), seeded(3))
    found = there.model(TOKENS)
    assert torch.equal(found.logits_BTV, before.logits_BTV)
    assert set(found.losses) == {*before.losses, "own"}
    own = 2 * 0.5 * found.losses["own"] + (before.aux if sparse else 0)
    torch.testing.assert_close(found.aux, own)
    moved(there)
    there.model.train()
    for checkpointing in (False, True):
        there.model.zero_grad()
        there.model.checkpointing = checkpointing
        loss = there.model.loss(TOKENS[:, :-1], TOKENS[:, 1:])
        (loss.nats + loss.aux).backward()
        trained = [p for p in there.model.parameters() if p.requires_grad]
        assert len(trained) == 2 * 3 and all(p.grad.any() for p in trained)
    there.model.eval()
    there.model.checkpointing = False
    apart = logits(there.model)
    assert torch.equal(logits(copy.deepcopy(there.model)), apart) and not torch.equal(apart, before.logits_BTV)
    with pytest.raises(MixwellError, match="depends on what comes in, so no matrix holds it"):
        there.merge()
    there.detach()
    assert torch.equal(logits(there.model), logits(bare))
