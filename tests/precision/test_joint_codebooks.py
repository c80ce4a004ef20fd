"""JLCM: slopes by differences and a loop, a word at most at a time, order kept, groups by hand, closer than k-means."""

import pytest
import torch

from mixwell.precision._statistics import output_error
from mixwell.precision.joint_codebooks import (
    Config,
    Mapped,
    encode,
    encode_all,
    joint_codebooks,
    learn,
    nearest_place,
    promises,
    resorted,
    scales,
    slopes,
    start,
)
from tests.contracts._conversions import calibration, whole
from tests.contracts._tools import fresh


@pytest.fixture
def layer(generator):
    weight = torch.randn(6, 16, generator=generator, dtype=torch.float64)
    mixing = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    x = torch.randn(200, 16, generator=generator, dtype=torch.float64) @ mixing
    return weight, x.T @ x / 200


def test_slopes_are_those_of_differences(layer):
    weight, H = layer
    found = start(weight, Config(bits=2), fresh())
    by_z, by_words, error = slopes(found, weight, H)
    change = found.weight() - weight
    assert error == pytest.approx(output_error(change, H))
    for k in range(4):
        moved = []
        for step in (1e-6, -1e-6):
            words = found.words_K.clone()
            words[k] += step
            moved.append(output_error(Mapped(words, found.codes_OI, found.scale_O).weight() - weight, H))
        assert (moved[0] - moved[1]) / 2e-6 == pytest.approx(float(by_words[k]), rel=1e-5)
    for o, i in ((0, 0), (3, 7), (5, 15)):  # as if the next word stood one apart
        moved = []
        for step in (1e-6, -1e-6):
            other = change.clone()
            other[o, i] += step * found.scale_O[o]
            moved.append(output_error(other, H))
        assert (moved[0] - moved[1]) / 2e-6 == pytest.approx(float(by_z[o, i]), rel=1e-5)


def test_no_mapping_moves_by_more_than_a_word_even_at_a_wild_rate(layer, monkeypatch):
    weight, H = layer
    seen = []
    monkeypatch.setattr("mixwell.precision.joint_codebooks.slopes",
                        lambda now, *given: seen.append(now.codes_OI) or slopes(now, *given))
    learn(start(weight, Config(bits=4), fresh()), weight, H, Config(bits=4, steps=6, lr=50.0, word_lr=1e-9))
    moves = torch.stack(seen).diff(dim=0).abs()
    assert int(moves.max()) == 1 and int(torch.stack(seen).max()) <= 15 and int(torch.stack(seen).min()) >= 0


def test_words_that_cross_keep_their_weights():
    words = torch.tensor([0.0, 2.0, 1.0, 3.0])
    z = torch.tensor([[0.2, 1.4, 2.3, 2.6]])
    ordered, places = resorted(words, z)
    assert ordered.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(places, torch.tensor([[0.2, 2.4, 1.3, 2.6]]))
    assert torch.equal(ordered[nearest_place(places)], words[nearest_place(z)])
    assert nearest_place(torch.tensor([0.5, 1.5, 2.5])).tolist() == [1, 2, 3]


def test_rows_alike_share_a_scale(generator):
    sizes = torch.tensor([1.0, 10.0, 1.0, 10.0, 1.0]).double()
    weight = torch.randn(5, 400, generator=generator, dtype=torch.float64) * sizes[:, None]
    found = scales(weight, 2, 20, fresh()).double()
    small, large = weight[::2].square().mean().sqrt(), weight[1::2].square().mean().sqrt()
    torch.testing.assert_close(found, torch.stack([small, large, small, large, small]), rtol=4e-3, atol=0)
    own = scales(weight, 0, 20, fresh()).double()
    torch.testing.assert_close(own, weight.square().mean(1).sqrt(), rtol=4e-3, atol=0)
    assert float(scales(torch.zeros(1, 8), 0, 1, fresh())) == 1


def test_closer_than_k_means_on_inputs_that_it_has_not_seen(generator):
    weight = torch.randn(32, 32, generator=generator)
    mixing = torch.randn(32, 32, generator=generator, dtype=torch.float64)
    x = torch.randn(800, 32, generator=generator, dtype=torch.float64) * torch.logspace(0, -1.5, 32) @ mixing
    seen, held = (part.T @ part for part in x.chunk(2))
    errors = []
    for config in (Config(bits=2, steps=200), Config(bits=2, steps=0), Config(bits=2, steps=200, groups=4)):
        coded = encode(weight, seen, config, fresh())
        errors.append(output_error(coded.weight().dequantised(torch.float64) - weight, held))
    assert errors[0] < 0.6 * errors[1] and errors[2] < 0.8 * errors[1]


def test_what_is_kept_is_never_worse_than_the_start(layer):
    weight, H = layer
    first = start(weight, Config(bits=3), fresh())
    wild = learn(first, weight, H, Config(bits=3, steps=5, lr=9.0, word_lr=9.0))
    assert slopes(wild, weight, H)[2] <= slopes(first, weight, H)[2]
    assert bool((wild.words_K.diff() >= 0).all())


def test_the_stored_weight_by_a_loop_and_experts_one_by_one(layer, generator):
    weight, H = layer
    config = Config(bits=2, steps=3, clustering=4)
    coded = encode(weight, H, config, fresh())
    back = coded.weight().dequantised(torch.float64)
    for o in range(6):
        for i in range(16):
            wanted = coded.scale[o, 0].double() * coded.table[int(coded.codes[o, i])].double()
            assert abs(float(back[o, i]) - float(wanted)) < 1e-12
    draws = fresh(3)
    both = encode_all(torch.stack([weight, -weight]), H, config, fresh(3))
    for e, own in enumerate((weight, -weight)):
        assert torch.equal(both.codes[e], encode(own, H, config, draws).codes)


def test_one_bit_on_a_model_and_refusals(generator):
    from mixwell.precision.joint_codebooks import example

    source = whole(example(generator)["checkpoint"])
    done = joint_codebooks(source, Config(bits=1, steps=2, tokens=72), generator, calibration())
    assert int(done.tensors["layers.0.channel_mixer.down_proj.bits"].max()) == 1
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
    with pytest.raises(ValueError, match="bits is 9; expected 1 to 8"):
        Config(bits=9)
    with pytest.raises(ValueError, match="word_lr"):
        Config(word_lr=0.0)
