"""Progressive N:M: masks against a loop, fading and patterns over a training, straight gradients, mixtures' experts."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.lm.model import LanguageModel
from mixwell.precision.sparse.progressive_nm import Config, ProgressiveNM, example, leak, pattern, patterns
from mixwell.precision.sparse.sparsifier import largest_of_groups, network
from tests.contracts._conversions import VOCAB, sparse_model
from tests.contracts._tools import fresh


@pytest.mark.parametrize("kept, group", [(1, 4), (2, 4), (3, 8)])
def test_groups_against_a_loop(generator, kept, group):
    weight = torch.randn(3, 16, generator=generator)
    weight[0, :group] = 1.0  # ties: the first stay
    found = largest_of_groups(weight, kept, group)
    for row in range(3):
        for start in range(0, 16, group):
            sizes = weight[row, start : start + group].abs().tolist()
            order = sorted(range(group), key=lambda place: (-sizes[place], place))
            wanted = [float(place in order[:kept]) for place in range(group)]
            assert found[row, start : start + group].tolist() == wanted


def test_what_is_read_and_which_gradient_comes_back(generator):
    model = network(generator)
    weight = model[0].weight.detach().clone()
    method = ProgressiveNM(model, Config(kept=1, group=4, weights=("0.*",), span=0.5), generator)
    method.advance(0.2)
    mask = largest_of_groups(weight, 1, 4)
    torch.testing.assert_close(model[0].weight, weight * (mask + 0.6 * (1 - mask)))
    x = torch.randn(5, 8, generator=generator)
    (model[0](x) ** 2).sum().backward()
    read = model[0].weight.detach()
    y = x @ read.T + model[0].bias.detach()
    torch.testing.assert_close(model[0].parametrizations.weight.original.grad, (2 * y).T @ x)


def test_fading():
    linear, exponential = Config(span=0.5), Config(decay="exponential", rate=6.0)
    assert [leak(done, linear) for done in (0.0, 0.25, 0.5, 1.0)] == [1.0, 0.5, 0.0, 0.0]
    assert leak(0.5, exponential) == pytest.approx(math.exp(-3.0)) and leak(1.0, exponential) > 0
    assert leak(0.0, Config(decay="stepwise")) == 0


def test_patterns_that_follow_one_another():
    assert patterns(Config(decay="stepwise", group=16)) == [(15, 16), (8, 16), (4, 16), (2, 16), (1, 16)]
    assert patterns(Config(decay="geometric", kept=2, group=4)) == [(16, 32), (8, 16), (4, 8), (2, 4)]
    assert [pattern(done, Config(decay="stepwise", group=4)) for done in (0.0, 0.4, 0.7, 1.0)] == [
        (3, 4), (2, 4), (1, 4), (1, 4)]


@pytest.mark.parametrize("decay", ["linear", "exponential", "stepwise", "geometric"])
def test_the_end_is_n_of_m_whatever_is_left_of_the_fading(decay):
    """Every expert of a mixture, in a model that is a model again."""
    model = LanguageModel.from_checkpoint(sparse_model(fresh()))
    config = Config(kept=1, group=2, decay=decay, weights=("*channel_mixer*_proj",))
    if decay == "geometric":
        with pytest.raises(MixwellError, match="groups of 16 do not divide rows of"):
            ProgressiveNM(model, config, fresh())
        return
    tokens = torch.randint(0, VOCAB, (2, 9), generator=fresh(3))
    before = model(tokens).logits_BTV
    method = ProgressiveNM(model, config, fresh())
    if decay != "stepwise":
        torch.testing.assert_close(model(tokens).logits_BTV, before)  # nothing has faded yet
    method.advance(0.5)
    method.finish()
    for layer in model.layers:
        for weight in (layer.channel_mixer.gate_up_proj, layer.channel_mixer.down_proj):
            assert bool(((weight.unflatten(-1, (-1, 2)) != 0).sum(-1) == 1).all()) and weight.ndim == 3
    assert model.to_checkpoint().tensors.keys() == sparse_model(fresh()).tensors.keys()


def test_refusals():
    with pytest.raises(ValueError, match="kept is 4 of 4; expected 1 <= kept < group"):
        Config(kept=4, group=4)
    with pytest.raises(ValueError, match=r"span is 1.5; expected above 0, up to 1"):
        Config(span=1.5)
    assert example(fresh())["config"].group == 4
