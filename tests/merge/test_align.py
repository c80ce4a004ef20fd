"""Permutation alignment: shuffled copies are found exactly, in decoders too; brute force on small sets; refusals."""

import itertools

import pytest
import torch

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.merge.align import (
    Axes,
    Config,
    activation_matching,
    align,
    decoder_spec,
    likeness,
    permuted,
    weight_matching,
)

SPEC = {"w1": Axes((6, 4), ("h", None)), "b1": Axes((6,), ("h",)), "w2": Axes((3, 6), (None, "h"))}


def mlp(generator):
    return {"w1": torch.randn(6, 4, generator=generator), "b1": torch.randn(6, generator=generator),
            "w2": torch.randn(3, 6, generator=generator)}


def answer(tensors, x):
    return torch.relu(x @ tensors["w1"].T + tensors["b1"]) @ tensors["w2"].T


def test_one_hidden_layer_gets_the_best_of_all_orders(generator):
    first, second = mlp(generator), mlp(generator)
    orders = weight_matching(SPEC, first, second, 5, generator)

    def total(order):
        moved = {name: permuted(second[name], axes, {"h": torch.tensor(order)}) for name, axes in SPEC.items()}
        return sum(float((first[name] * moved[name]).sum()) for name in SPEC)

    best = max(itertools.permutations(range(6)), key=total)
    assert total(orders["h"].tolist()) == pytest.approx(total(best))
    x = torch.randn(5, 4, generator=generator)
    moved = {name: permuted(second[name], axes, orders) for name, axes in SPEC.items()}
    torch.testing.assert_close(answer(moved, x), answer(second, x))
    with pytest.raises(ValueError, match="no tensor has the units 'g'"):
        likeness("g", SPEC, first, second, {})


def test_activations_match_shuffled_units(generator):
    values = torch.randn(40, 7, generator=generator)
    order = torch.randperm(7, generator=generator)
    found = activation_matching(values, 3 * values[:, order] + 1)
    assert torch.equal(order[found], torch.arange(7))


def shuffled(checkpoint, generator, residual):
    """The same function with its units, and its residual stream, in another order."""
    spec = decoder_spec(checkpoint, residual)
    sizes = {units: axes.view[axis] for axes in spec.values() for axis, units in enumerate(axes.units) if units}
    orders = {units: torch.randperm(size, generator=generator) for units, size in sizes.items()}
    tensors = {name: permuted(tensor, spec[name], orders) if name in spec else tensor
               for name, tensor in checkpoint.tensors.items()}
    return checkpoint.derive(tensors=tensors)


@pytest.mark.parametrize("residual", [True, False])
def test_a_shuffled_decoder_is_brought_back(residual, generator):
    config = ModelConfig(vocab_size=20, dim=16, num_layers=2, num_heads=2, num_kv_heads=1,
                         channel_mixer={"method": "swiglu", "hidden_dim": 24})
    start = LanguageModel(config, generator).to_checkpoint()
    tensors = {name: tensor + (0.1 * torch.randn(tensor.shape, generator=generator) if tensor.ndim == 1 else 0)
               for name, tensor in start.tensors.items()}
    first = start.derive(tensors=tensors)
    second = shuffled(first, generator, residual)
    tokens = torch.randint(0, 20, (2, 7), generator=generator)
    logits = [LanguageModel.from_checkpoint(one)(tokens).logits_BTV for one in (first, second)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)  # the order of units means nothing
    found = align([first, second], None, Config(t=1.0, residual=residual), generator)
    assert any(not torch.equal(second.tensors[name], first.tensors[name]) for name in first.tensors)
    for name, tensor in first.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor)


def test_what_has_unknown_axes_is_named(generator):
    checkpoint = Checkpoint({"num_layers": 1, "channel_mixer": {}}, {"layers.0.strange": torch.ones(3, 3)})
    with pytest.raises(MixwellError, match=r"does not know the axes of layers\.0\.strange"):
        align([checkpoint, checkpoint], None, Config(), generator)
    with pytest.raises(ValueError, match="sweeps is 0"):
        Config(sweeps=0)
