"""Compressing experts: the model that starts, what of it learns, and what cannot be compressed."""

import pytest
import torch

from mixwell.convert.compress_experts import COMPRESSED, Config, compress_experts, promises
from mixwell.core.checkpoint import with_channel_mixers
from mixwell.core.errors import MixwellError
from mixwell.lm.model import LanguageModel
from tests.contracts._conversions import block, output, sparse_model, spec


def with_options(checkpoint, **options):
    specs = [spec(checkpoint, layer) | options for layer in range(2)]
    return checkpoint.derive(arch=with_channel_mixers(checkpoint.arch, specs))


def vectors(checkpoint):
    return {n for n in checkpoint.tensors if n.endswith(("into_gate", "into_up", "hidden_scale"))}


@pytest.mark.parametrize("k, main", [(2, 1), (3, 2), (3, 1)])
def test_starts_as_the_main_experts_with_the_weights_they_had(generator, k, main):
    checkpoint = with_options(sparse_model(generator), router={"method": "top_k", "k": k})
    after = compress_experts(checkpoint, Config(main=main), generator)
    x = torch.randn(5, 6, generator=generator)
    start = "layers.1.channel_mixer."
    for x_D, y_D in zip(x, output(after, 1, x)):
        p = torch.softmax(checkpoint.tensors[f"{start}router.weight"].double() @ x_D.double(), 0)
        order = p.argsort(descending=True).tolist()
        mass = sum(p[e] for e in order[:k])
        expected = sum(p[e] / mass * block(checkpoint.tensors[f"{start}gate_up_proj"][e],
                                           checkpoint.tensors[f"{start}down_proj"][e], x_D) for e in order[:main])
        torch.testing.assert_close(y_D, expected, rtol=1e-4, atol=1e-4)


def test_copies_what_it_does_not_make(generator):
    checkpoint = sparse_model(generator)
    after = compress_experts(checkpoint, Config(main=1), generator)
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in checkpoint.tensors.items())
    made = vectors(after)
    assert set(after.tensors) - set(checkpoint.tensors) == made and len(made) == 6
    assert all((after.tensors[name] == 1).all() for name in made)
    assert spec(after, 0) == {"method": COMPRESSED, "num_experts": 4, "hidden_dim": 4, "main": 1,
                              "router": {"method": "top_k", "k": 2}}


def test_all_of_it_learns(generator):
    after = compress_experts(sparse_model(generator), Config(main=1), generator)
    model = LanguageModel.from_checkpoint(after)
    assert model.num_parameters(active=True) < LanguageModel.from_checkpoint(
        sparse_model(generator)).num_parameters(active=True)
    logits = model(torch.arange(12).view(1, 12)).logits_BTV
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if name in vectors(after) or name.endswith("router.weight"):
            assert parameter.grad.abs().max() > 0, name


def test_some_layers_only(generator):
    after = compress_experts(sparse_model(generator), Config(layers=(1,)), generator)
    assert [spec(after, layer)["method"] == COMPRESSED for layer in range(2)] == [False, True]


def test_promises_nothing():
    assert promises(Config()) == {}


@pytest.mark.parametrize("options, message", [
    ({"router": {"method": "top_k", "k": 1}}, "activates 1 experts a token; expected main below that, got 1"),
    ({"capacity_factor": 1.0}, "has capacity_factor = 1.0, which compressed experts lack"),
    ({"shared_experts": 1}, "has shared_experts = 1, which compressed experts lack"),
    ({"router": {"method": "top_p"}}, "without a k"),
])
def test_refuses_what_it_cannot_do(generator, options, message):
    with pytest.raises(MixwellError, match=message):
        compress_experts(with_options(sparse_model(generator), **options), Config(main=1), generator)


def test_refuses_no_main_expert():
    with pytest.raises(ValueError, match="main is 0; expected at least 1"):
        Config(main=0)
