"""Offsite tuning: which layers stay, what is put back, distillation against its equation, what it refuses."""

import copy

import pytest
import torch

from mixwell.adapters.protocols.offsite import Config, distance, distilled, kept, offsite, plugged, trained
from mixwell.core.errors import MixwellError
from mixwell.lm.model import LanguageModel
from tests.contracts._adapters import DENSE, SPARSE, TOKENS, logits, model

OWN = Config(ends=1, middle=2)


@pytest.fixture
def whole():
    return model(num_layers=6, channel_mixer=(DENSE, SPARSE, DENSE, DENSE, SPARSE, DENSE))


@pytest.mark.parametrize("layers, config, expected", [
    (24, Config(), [0, 1, 2, 5, 7, 10, 13, 16, 18, 21, 22, 23]), (6, OWN, [0, 1, 4, 5]),
    (7, Config(ends=1, middle=1), [0, 1, 6])])
def test_layers_are_kept_at_even_distances(layers, config, expected):
    assert kept(layers, config) == expected


def test_the_emulator_is_the_network_without_the_others(whole):
    small = LanguageModel.from_checkpoint(offsite(whole.to_checkpoint(), OWN)).eval()
    by_hand = copy.deepcopy(whole)
    by_hand.layers = torch.nn.ModuleList(by_hand.layers[i] for i in (0, 1, 4, 5))
    assert torch.equal(logits(small), logits(by_hand))


def test_tuned_ends_go_back_around_the_whole_middle(whole):
    checkpoint = whole.to_checkpoint()
    before = {name: value.clone() for name, value in checkpoint.tensors.items()}
    small = LanguageModel.from_checkpoint(offsite(checkpoint, OWN))
    names = trained([name for name, _ in small.named_parameters()], 4, OWN)
    assert {name.split(".")[1] for name in names} == {"0", "3"} and not any("embed" in name for name in names)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter += 0.1  # also where it must not count
    after = plugged(checkpoint, small.to_checkpoint(), OWN)
    own = {"0": "0", "3": "5"}
    moved = {f"layers.{own[name.split('.')[1]]}.{name.split('.', 2)[2]}" for name in names}
    for name, value in after.tensors.items():
        expected = before[name] + 0.1 if name in moved else before[name]
        torch.testing.assert_close(value, expected)
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.tensors.items())
    again = plugged(checkpoint, offsite(checkpoint, OWN), OWN)
    assert torch.equal(logits(LanguageModel.from_checkpoint(again).eval()), logits(whole))  # untuned: the whole itself


def through(network, layers, tokens):
    seen = {}
    hooks = [network.layers[i].register_forward_hook(lambda _, __, found, i=i: seen.update({i: found[0]}))
             for i in layers]
    loss = network.loss(tokens[:, :-1], tokens[:, 1:]).nats
    for hook in hooks:
        hook.remove()
    return loss, seen


def test_distillation_brings_the_middle_alone_closer(whole):
    small = LanguageModel.from_checkpoint(offsite(whole.to_checkpoint(), OWN)).eval()
    before = {name: value.clone() for name, value in small.state_dict().items()}
    with torch.no_grad():
        nats, seen = through(small, [2], TOKENS)
        _, theirs = through(whole, [4], TOKENS)
        off = (theirs[4] - seen[2]).flatten().tolist()
        rms = (sum(t * t for t in theirs[4].flatten().tolist()) / len(off)) ** 0.5
        expected = float(nats) + 3.0 * sum((o / rms) ** 2 for o in off) / len(off)
    losses = distilled(whole, small, [TOKENS] * 8, Config(ends=1, middle=2, match=3.0), lr=3e-4)
    assert losses[0] == pytest.approx(expected, rel=1e-4) and losses[-1] < losses[0]
    after = small.state_dict()
    changed = {name.split(".")[1] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"1", "2"} and all(parameter.grad is None for parameter in whole.parameters())


def test_the_distance_is_measured_in_the_teachers_size():
    t, s = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    torch.testing.assert_close(distance(5 * t, 5 * s), distance(t, s))
    assert float(distance(t, torch.zeros_like(t))) == pytest.approx(1)


def test_what_cannot_be_is_refused(whole):
    with pytest.raises(MixwellError, match="6 layers leave 2 between ends of 2, and the emulator would keep 8"):
        offsite(whole.to_checkpoint(), Config())
    with pytest.raises(MixwellError, match="the emulator has 6 layers; expected 4"):
        plugged(whole.to_checkpoint(), whole.to_checkpoint(), OWN)
    other = offsite(model(num_layers=6, dim=8).to_checkpoint(), OWN)
    with pytest.raises(MixwellError, match=r"layers\.0\..* has no place of shape"):
        plugged(whole.to_checkpoint(), other, OWN)
    for options, message in (({"ends": 0}, "ends is 0"), ({"match": -1.0}, "match is -1")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
