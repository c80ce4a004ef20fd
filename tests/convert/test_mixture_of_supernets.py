"""Folding widths out of a mixture of supernets: what the layer itself computes at that width, and refusals."""

import pytest
import torch

from mixwell.convert._parts import DENSE
from mixwell.convert.mixture_of_supernets import Config, example, mixture_of_supernets, promises
from mixwell.core.errors import MixwellError
from mixwell.experts.layers import supernet
from tests.contracts._conversions import dense_model, logits, output, spec, whole

TOKENS = torch.arange(12).view(1, 12)


def layer_of(checkpoint, number, by):
    start = f"layers.{number}.channel_mixer."
    config = supernet.Config(hidden_dim=8, weights=3, router_dim=5, by=by)
    layer = supernet.Supernet(6, config)
    own = {name.removeprefix(start): value for name, value in checkpoint.tensors.items() if name.startswith(start)}
    layer.load_state_dict(own)
    return layer


def test_each_layer_is_the_supernets_own_block_of_its_width(generator):
    before = whole(example(generator)["checkpoint"])
    after = mixture_of_supernets(before, Config(widths=(4, 3)), generator)
    x = torch.randn(5, 6, generator=generator)
    for number, width in enumerate((4, 3)):
        expected = layer_of(before, number, "neuron").at_width(x, width)
        torch.testing.assert_close(output(after, number, x), expected.detach().double(), rtol=1e-4, atol=1e-4)
        assert spec(after, number) == {"method": DENSE, "hidden_dim": width}


@pytest.mark.parametrize("widths", [None, 8])
def test_the_full_width_is_the_model_that_it_was(generator, widths):
    before = whole(example(generator)["checkpoint"])
    after = mixture_of_supernets(before, Config(widths=widths), generator)
    torch.testing.assert_close(logits(after, TOKENS), logits(before, TOKENS), rtol=1e-4, atol=1e-4)
    assert ("max_logit_error" in promises(Config(widths=widths))) == (widths is None)


def test_what_cannot_be_folded_is_told(generator):
    before = whole(example(generator)["checkpoint"])
    with pytest.raises(MixwellError, match="layer 0 has 8 hidden units; expected a width of that at most, got 9"):
        mixture_of_supernets(before, Config(widths=9), generator)
    with pytest.raises(MixwellError, match="3 widths for 2 layers"):
        mixture_of_supernets(before, Config(widths=(1, 2, 3)), generator)
    with pytest.raises(MixwellError, match=r"layer 0 is .*swiglu; expected experts\.layers\.supernet"):
        mixture_of_supernets(dense_model(generator), Config(widths=2), generator)
    with pytest.raises(ValueError, match="widths has 0"):
        Config(widths=(0, 2))
