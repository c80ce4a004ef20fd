"""Gradual magnitude pruning: the schedule, masks against a sort, what is gone stays gone, experts each by itself."""

import pytest
import torch

from mixwell.lm.model import LanguageModel
from mixwell.precision.sparse.gradual_magnitude import Config, GradualMagnitude, example, gone
from mixwell.precision.sparse.sparsifier import largest_share, network
from tests.contracts._conversions import sparse_model
from tests.contracts._tools import fresh


def test_sparsity_rises_by_a_cubic_in_steps_over_its_span():
    config = Config(share=0.8, begin=0.2, end=0.8, updates=4)
    assert [gone(done, config) for done in (0.0, 0.2, 0.3)] == [0, 0, 0]
    assert gone(0.5, config) == pytest.approx(0.8 - 0.8 / 8) == gone(0.64, config)
    assert gone(0.8, config) == pytest.approx(0.8) == gone(1.0, config)


def test_the_smallest_go_and_never_return(generator):
    model = network(generator)
    weight = model[0].weight.detach().clone()
    method = GradualMagnitude(model, Config(share=0.75, begin=0.0, end=1.0, updates=2, weights=("0.*",)), generator)
    method.advance(0.5)
    limit = weight.abs().flatten().sort().values[round(gone(0.5, method.config) * 128)]
    torch.testing.assert_close(model[0].weight, torch.where(weight.abs() >= limit, weight, 0))
    first = method.forms[0].mask.clone()
    with torch.no_grad():
        model[0].parametrizations.weight.original[first == 0] = 100.0
    method.advance(0.75)
    assert torch.equal(method.forms[0].mask, first)
    method.advance(1.0)
    last = method.forms[0].mask
    assert int(last.sum()) == 32 and bool((last <= first).all())
    x = torch.randn(5, 8, generator=generator)
    model[0](x).square().sum().backward()
    assert bool((model[0].parametrizations.weight.original.grad[last == 0] == 0).all())


def test_every_expert_loses_its_own_smallest():
    model = LanguageModel.from_checkpoint(sparse_model(fresh()))
    config = Config(share=0.5, weights=("*channel_mixer*_proj",))
    before = model.layers[1].channel_mixer.down_proj.detach().clone()
    method = GradualMagnitude(model, config, fresh())
    method.advance(1.0)
    method.finish()
    after = model.layers[1].channel_mixer.down_proj
    for own, left in zip(before, after):
        limit = own.abs().flatten().median()
        torch.testing.assert_close(left, torch.where(own.abs() > limit, own, 0))
    assert largest_share(before, 0.001).flatten(1).sum(1).tolist() == [1.0] * 4


def test_refusals():
    with pytest.raises(ValueError, match=r"share is 1.0; expected above 0 and below 1"):
        Config(share=1.0)
    with pytest.raises(ValueError, match=r"begin is 0.8 and end 0.8; expected begin < end <= 1"):
        Config(begin=0.8)
    assert example(fresh())["config"].share == 0.5
