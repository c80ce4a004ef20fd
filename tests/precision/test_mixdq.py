"""MixDQ: both measures against loops, the family against trying all, the pick by the output, first tokens whole."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from mixwell.precision._divergence import of_mixes
from mixwell.precision.bits import at_width, at_widths, part
from mixwell.precision.mixdq import (
    Config,
    Decoupled,
    dealt,
    example,
    mixdq,
    mixes,
    promises,
    rounded_but_first,
    sensitivities,
    squared_error,
)
from tests.contracts._conversions import calibration, logits
from tests.precision.test_ohq import nats_apart, outspoken

SMALL = {"group_size": 8, "tokens": 24}


@pytest.fixture
def checkpoint(generator):
    assert example(generator)["config"].ratios
    return outspoken(generator)


@pytest.fixture
def text():
    return calibration(rows=2, length=6)


def test_content_is_measured_by_kl_and_the_rest_by_decibels(checkpoint, text):
    config = Config(widths=(2, 4), **SMALL)
    found = sensitivities(checkpoint, config, torch.Generator(), text)
    places = list(found.places)
    assert [".channel_mixer." in name for name, _ in places] == found.content_U.tolist()
    name, expert = "layers.0.channel_mixer.down_proj", 1
    moved = checkpoint.tensors[name].double().clone()
    moved[expert] = at_width(moved[expert], 2, config)
    assert float(found.harm_UB[places.index((name, expert)), 0]) == pytest.approx(
        nats_apart(checkpoint, name, moved, text), rel=2e-3)
    name = "layers.0.sequence_mixer.qkv.weight"
    moved = at_width(checkpoint.tensors[name], 4, config)
    signal = noise = 0.0
    for tokens in text.batches:
        whole = logits(checkpoint, tokens)
        other = logits(checkpoint.derive(tensors={**checkpoint.tensors, name: moved}), tokens)
        for y, y_q in zip(whole.flatten().tolist(), other.flatten().tolist()):
            signal, noise = signal + y**2, noise + (y - y_q) ** 2
    decibels = 10 * math.log10(signal / noise)
    assert float(found.harm_UB[places.index((name, None)), 1]) == pytest.approx(-decibels, rel=1e-3)


def test_deals_keep_the_average():
    config = Config(least_ratio=0.5, most_ratio=2.0, ratios=4, below=0.4, averages=3)
    deals = list(dealt(4.0, 0.75, config))
    assert deals[0] == (4.0, 4.0) and len(deals) == 13
    means = {round(0.75 * content + 0.25 * rest, 5) for content, rest in deals}
    assert means == {3.6, 3.8, 4.0}
    assert {round(content / rest, 5) for content, rest in deals} == {0.5, 1.0, 1.5, 2.0}


def planted(generator):
    harm = torch.rand(5, 3, generator=generator, dtype=torch.float64).sort(1, descending=True).values
    content = torch.tensor([True, True, True, False, False])
    harm[~content] *= -10
    harm[~content] = harm[~content].flip(1)
    counts = torch.tensor([8.0, 16, 8, 24, 16], dtype=torch.float64)
    found = Decoupled(places=[], harm_UB=harm, content_U=content, calibration=None)
    return found, counts[:, None] * torch.tensor([[2.0, 4, 8]]).double(), counts


def test_the_family_is_that_of_trying_all_in_each_group(generator):
    found, size, counts = planted(generator)
    config = Config(widths=(2, 4, 8), ratios=4, averages=2, **SMALL)
    expected = set()
    share = 32 / 72
    for means in dealt(4.0, share, config):
        picks = []
        for group, mean in zip(([0, 1, 2], [3, 4]), means):
            fitting = [choice for choice in itertools.product(range(3), repeat=len(group))
                       if sum(float(size[u, b]) for u, b in zip(group, choice)) <= mean * float(counts[group].sum())]
            picks.append(min(fitting, default=None,
                             key=lambda choice: sum(float(found.harm_UB[u, b]) for u, b in zip(group, choice))))
        if None not in picks:
            expected.add((*picks[0], *picks[1]))
    family = mixes(found, size, counts, 4.0, config)
    assert set(family) == expected and len(family) == len(expected) > 1


def test_one_group_alone_and_a_tight_budget_have_a_mix(generator):
    found, size, counts = planted(generator)
    config = Config(widths=(2, 4, 8), **SMALL)
    alone = replace(found, content_U=torch.ones(5, dtype=torch.bool))
    assert mixes(alone, size, counts, 4.0, config)
    assert mixes(found, size, counts, 2.0, config) == [(0, 0, 0, 0, 0)]


def test_the_pick_is_the_one_whose_output_is_closest(checkpoint, text, monkeypatch):
    """Against every mix of the family, weighed token by token in float64; the promise of the paper."""
    from mixwell.precision import mixdq as module

    family, real = [], module.mixes
    monkeypatch.setattr(module, "mixes", lambda *given: family.extend(real(*given)) or list(family))
    config = Config(widths=(2, 4, 8), bits_per_weight=4, ratios=3, averages=2, below=0.2, **SMALL)
    after = mixdq(checkpoint, config, torch.Generator(), text)
    told = after.lineage[-1]
    assert told["family"] == len(family) > 1
    found = sensitivities(checkpoint, config, torch.Generator(), text)
    errors = []
    for choice in family:
        tensors = {name: value.double().clone() for name, value in checkpoint.tensors.items()}
        for (name, expert), column in zip(found.places, choice):
            own = tensors[name] if expert is None else tensors[name][expert]
            own.copy_(at_width(part(checkpoint.tensors, (name, expert)), config.widths[column], config))
        moved = checkpoint.derive(tensors=tensors)
        total = sum(float((logits(checkpoint, tokens) - logits(moved, tokens)).square().sum())
                    for tokens in text.batches)
        errors.append(total / 12)
    assert told["squared_error"] == pytest.approx(min(errors), rel=1e-3)
    widths = [config.widths[column] for column in family[errors.index(min(errors))]]
    assert [width for own in told["bits"].values() for width in own] == widths
    moved = at_widths(checkpoint, found.places, widths, config)
    assert of_mixes(checkpoint, [moved], text, squared_error) == pytest.approx([min(errors)], rel=1e-3)


def test_a_large_first_token_costs_the_others_nothing(generator):
    x = torch.randn(2, 9, 6, generator=generator)
    x[:, 0] *= 20
    kept, shared = rounded_but_first(x, 4), rounded_but_first(x, 4, keep=0)
    assert torch.equal(kept[:, 0], x[:, 0])
    errors = [float((own - x)[:, 1:].square().mean()) for own in (kept, shared)]
    assert errors[1] > 10 * errors[0] > 0
    low, high = min(x[:, 1:].min().item(), 0), max(x[:, 1:].max().item(), 0)
    step = (high - low) / 15
    zero = round(-low / step)
    for value, told in zip(x[:, 1:].flatten().tolist(), kept[:, 1:].flatten().tolist()):
        code = min(max(round(value / step) + zero, 0), 15)
        assert told == pytest.approx(step * (code - zero), abs=1e-5)


def test_refusals():
    for options, message in (({"least_ratio": 0}, "least_ratio is 0"), ({"most_ratio": 0.1}, "most_ratio is 0.1"),
                             ({"ratios": 0}, "ratios is 0"), ({"averages": 0}, "averages is 0"),
                             ({"below": -1}, "below is -1")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
