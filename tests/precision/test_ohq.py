"""OHQ: masked sensitivities against a loop in float64, the program against trying all, times that are measured."""

import itertools
from dataclasses import replace

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.kernels.codes import CodedWeight
from mixwell.precision import ohq as module
from mixwell.precision._divergence import divergences, own_text
from mixwell.precision.bits import at_width, part, places_of
from mixwell.precision.ohq import Config, chances, example, masked, ohq, promises, sensitivities, solved, times
from tests.contracts._conversions import calibration, logits, whole

SMALL = {"group_size": 8, "tokens": 24}


def outspoken(generator):
    """A model whose logits are some units apart, so that a KL is more than the noise of float32."""
    made = whole(example(generator)["checkpoint"])
    return made.derive(tensors={**made.tensors, "head.weight": 30 * made.tensors["head.weight"]})


@pytest.fixture
def checkpoint(generator):
    return outspoken(generator)


def nats_apart(checkpoint, name, tensor, text):
    """Mean KL of the model to itself with one tensor replaced, in float64, token by token."""
    other = checkpoint.derive(tensors={**checkpoint.tensors, name: tensor})
    total, count = 0.0, 0
    for tokens in text.batches:
        p, q = (logits(own, tokens).log_softmax(-1) for own in (checkpoint, other))
        for row in range(tokens.shape[0]):
            for place in range(tokens.shape[1]):
                total += float((p[row, place].exp() * (p[row, place] - q[row, place])).sum())
                count += 1
    return total / count


def test_divergences_are_those_of_a_loop(checkpoint):
    text, config = calibration(rows=2, length=6), Config(**SMALL)
    places = [("layers.0.channel_mixer.down_proj", 1), ("layers.0.sequence_mixer.qkv.weight", None)]
    seeds = {places[0]: 3, places[1]: 4}

    def changed(place, width):
        weight = part(checkpoint.tensors, place)
        return masked(weight, at_width(weight, width, config), 0.5, seeds[place])

    found = divergences(checkpoint, places, (2, 4), changed, text)
    for unit, (name, expert) in enumerate(places):
        for column, width in enumerate((2, 4)):
            moved = checkpoint.tensors[name].double().clone()
            moved[expert if expert is not None else slice(None)] = changed((name, expert), width)
            assert float(found[unit, column]) == pytest.approx(nats_apart(checkpoint, name, moved, text), rel=2e-3)


def test_a_mask_rounds_its_share(generator):
    weight = torch.randn(40, 50, generator=generator)
    moved = masked(weight, torch.zeros(40, 50).double(), 0.3, 7)
    assert 0.25 < float((moved == 0).double().mean()) < 0.35
    assert torch.equal(moved[moved != 0], weight.double()[moved != 0])
    assert torch.equal(moved, masked(weight, torch.zeros(40, 50).double(), 0.3, 7))
    assert not masked(weight, torch.zeros(40, 50).double(), 1.0, 7).any()


def test_masks_are_averaged_and_the_whole_share_is_all_of_the_matrix(checkpoint):
    draws = [torch.Generator().manual_seed(3) for _ in range(3)]
    config = Config(widths=(2,), share=1.0, masks=2, beta=0, bits_per_weight=2, **SMALL)
    twice = sensitivities(checkpoint, config, draws[0], calibration())
    text = own_text(checkpoint, 24, calibration(), draws[1])

    def changed(place, width):
        return at_width(part(checkpoint.tensors, place), width, config)

    plain = divergences(checkpoint, twice.places, (2,), changed, text)
    torch.testing.assert_close(twice.harm_UB, plain)
    half = sensitivities(checkpoint, replace(config, share=0.5, masks=1), draws[2], calibration())
    assert float(half.harm_UB.sum()) < float(plain.sum())


def test_own_text_is_of_the_models_own_shares(checkpoint):
    """A model that says one token wherever it stands writes that token."""
    sure = checkpoint.derive(tensors={**checkpoint.tensors, "head.weight": torch.zeros(13, 16)})
    written = torch.cat(list(own_text(checkpoint, 130, calibration(), torch.Generator().manual_seed(0)).batches))
    assert written.shape == (3, 44) and len(written.unique()) > 2
    narrow = torch.cat(list(own_text(sure, 1300, calibration(), torch.Generator().manual_seed(0)).batches))
    counts = torch.bincount(narrow.flatten(), minlength=13)
    assert int(counts.min()) > 60  # even shares: all alike
    with pytest.raises(MixwellError, match="hand in a calibration, whatever its text"):
        own_text(checkpoint, 10, None, torch.Generator())


@pytest.mark.parametrize("max_time", [0.0, 0.7])
def test_the_program_finds_what_trying_all_finds(generator, max_time):
    omega, time = (torch.rand(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    size = torch.tensor([[2.0, 4, 8]]) * torch.tensor([[1.0], [2], [1], [3], [2]])
    config = Config(widths=(2, 4, 8), alpha=2.0, beta=0.5, max_time=max_time)
    limit = max_time * float(time[:, 2].sum()) if max_time else float("inf")
    best = None
    for choice in itertools.product(range(3), repeat=5):
        picks = range(5), choice
        if float(size[picks].sum()) > 30 or float(time[picks].sum()) > limit:
            continue
        cost = float((2 * omega / omega.max() + 0.5 * time / time.max())[picks].sum())
        best = min(best or (cost, choice), (cost, choice))
    assert solved(omega, time, size, 30.0, config) == list(best[1])
    if max_time:
        with pytest.raises(ValueError, match="the solver found no widths"):
            solved(omega, time, size, 30.0, Config(widths=(2, 4, 8), max_time=0.01))


def test_chances_are_those_of_independent_tokens(checkpoint):
    text, places = calibration(), places_of(checkpoint, Config(**SMALL))
    counts = text.routed(checkpoint)[0]
    found = dict(zip(places, chances(checkpoint, places, 3, text).tolist()))
    for expert in range(3):
        share = float(counts[expert]) / 72
        assert found["layers.0.channel_mixer.down_proj", expert] == pytest.approx(1 - (1 - share) ** 3)
    assert found["layers.0.sequence_mixer.out.weight", None] == 1


def test_times_are_measured_of_each_shape_and_width_once(checkpoint, monkeypatch):
    asked = []

    def seconds(weight, rows):
        asked.append((tuple(weight.shape), int(weight.blocks[0][0].bits), rows))
        return float(weight.blocks[0][0].bits)

    monkeypatch.setattr(module, "seconds", seconds)
    config = Config(widths=(2, 4), rows=5, **SMALL)
    places = places_of(checkpoint, config)
    found = times(checkpoint, places, config, calibration())
    assert len(asked) == len(set(asked)) and all(rows == 5 for _, _, rows in asked)
    expected = chances(checkpoint, places, 5, calibration())[:, None] * torch.tensor([[2.0, 4.0]])
    torch.testing.assert_close(found, expected)


def test_a_product_takes_time(generator, monkeypatch):
    calls, real = [], CodedWeight.linear
    monkeypatch.setattr(CodedWeight, "linear", lambda self, x: calls.append(x.shape) or real(self, x))
    coded = module.nearest(torch.randn(8, 16, generator=generator), 4, 8, True).weight()
    assert 0 < module.seconds(coded, 3) < 60
    assert calls == [(3, 16)] * module.RUNS


def test_time_decides_where_harms_are_small(checkpoint, monkeypatch):
    """With times that fall with bits, a limit on time takes the bits up to where it is kept."""
    monkeypatch.setattr(module, "seconds", lambda weight, rows: 1 / float(weight.blocks[0][0].bits))
    draws = torch.Generator().manual_seed(1)
    config = Config(widths=(2, 8), bits_per_weight=8, alpha=0, beta=0, max_time=1.0, **SMALL)
    fast = ohq(checkpoint, config, draws, calibration()).lineage[-1]
    assert {width for own in fast["bits"].values() for width in own} == {8}
    assert 0 < fast["expected_seconds"] < 8
    with pytest.raises(MixwellError, match=r"bits_per_weight: the solver found no widths"):
        ohq(checkpoint, Config(widths=(2, 8), bits_per_weight=4, max_time=1.0, **SMALL), draws, calibration())


def test_refusals():
    for options, message in (({"share": 0}, "share is 0; expected above 0, to 1"), ({"alpha": -1}, "alpha is -1"),
                             ({"masks": 0}, "masks is 0"), ({"rows": 0}, "rows is 0"), ({"max_time": -1}, "max_time")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
