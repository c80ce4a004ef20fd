"""Flash-LLM's format: entries by hand, round trips, products, bytes by formula, a mixture's experts."""

import pytest
import torch

from mixwell.core.checkpoint import Checkpoint
from mixwell.precision.sparse.flash_llm import Config, beside, example, flash_llm, places, size_bytes, sizes
from tests.contracts._tools import fresh


def thinned(generator, shape, share):
    return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) >= share)


def test_entries_are_the_bits_that_the_format_says(generator):
    weight = thinned(generator, (256, 128), 0.95)
    weight[3, 70], weight[130, 5] = -1.5, 2.0
    found = flash_llm(weight, Config())
    half = weight.half()
    listed = {}
    for number in range(4):
        first, last = (4 * found.offsets[number : number + 2]).tolist()
        for bits in found.entries[first:last].tolist():
            bits &= 0xFFFFFFFF
            place, low = bits >> 16, bits & 0xFFFF
            row, turned = divmod(place, 64)
            column = turned ^ ((row % 8) * 8)
            value = torch.tensor([low - 65536 if low > 32767 else low], dtype=torch.int16).view(torch.float16)
            listed[number // 2 * 128 + row, number % 2 * 64 + column] = float(value)
    there = {(r, c): float(half[r, c]) for r, c in half.nonzero().tolist()}
    assert {place: value for place, value in listed.items() if value} == there
    assert listed[3, 70] == -1.5 and len(listed) == len(found.entries)
    assert found.offsets[-1] == found.offsets[-2] and 4 * int(found.offsets[-1]) == len(found.entries)
    assert sorted(places().flatten().tolist()) == list(range(128 * 64))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("split_k", [1, 2, 3])
def test_round_trip_product_and_bytes(generator, share, split_k):
    weight = thinned(generator, (128, 192), share).half()
    found = flash_llm(weight, Config(split_k=split_k))
    assert torch.equal(found.dense(), weight)
    x = torch.randn(2, 3, 192, generator=generator)
    wanted = (x.double() @ weight.double().T).float()
    torch.testing.assert_close(found.product(x), wanted, rtol=1e-5, atol=1e-5)
    assert found.size_bytes == size_bytes(len(found.entries), (128, 192))
    assert 0 <= len(found.entries) - int((weight != 0).sum()) <= 3 * 3


def test_smaller_than_float16_from_half_on_and_larger_than_a_bitmask_at_four_fifths(generator):
    ratio = {share: flash_llm(w, Config()).size_bytes / beside(w)["dense"]
             for share in (0.4, 0.6, 0.8) for w in [thinned(generator, (256, 256), share)]}
    assert ratio[0.4] > 1 > ratio[0.6] > ratio[0.8]
    for share, found in ratio.items():
        assert found == pytest.approx(2 * (1 - share), abs=0.02)
    fifth = thinned(generator, (256, 256), 0.8)
    assert beside(fifth)["bitmask"] < flash_llm(fifth, Config()).size_bytes < beside(fifth)["csr"]


def test_sizes_of_a_model_tell_each_expert(generator):
    tensors = {"layers.0.channel_mixer.down_proj": thinned(generator, (3, 128, 64), 0.5),
               "embed.weight": torch.zeros(128, 128), "layers.0.channel_norm.weight": torch.ones(64),
               "layers.0.channel_mixer.router.weight": torch.ones(3, 128)}
    found = sizes(Checkpoint({}, tensors))
    assert set(found) == {"embed.weight", *(f"layers.0.channel_mixer.down_proj.{e}" for e in range(3))}
    assert found["embed.weight"] == {"tiled": 4 * (2 + 2), "dense": 2 * 128 * 128, "bitmask": 2048, "csr": 4 * 129}


def test_refusals():
    with pytest.raises(ValueError, match=r"the weight is \[100, 64\]; expected \[M, K\] of whole tiles"):
        flash_llm(torch.zeros(100, 64), Config())
    with pytest.raises(ValueError, match="beyond float16's 65504"):
        flash_llm(torch.full((128, 64), 1e6), Config())
    with pytest.raises(ValueError, match="split_k is 2 of 1 tiles across"):
        flash_llm(torch.zeros(128, 64), Config(split_k=2))
    with pytest.raises(ValueError, match="split_k is 0"):
        Config(split_k=0)
    assert example(fresh())["weight"].shape == (256, 128)
