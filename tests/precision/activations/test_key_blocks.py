"""K-sort: blocks by a loop, pairs that move together, scores that no order changes, less error, a model's cache."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.precision.activations.key_blocks import (
    Config,
    in_blocks,
    key_blocks,
    key_sizes,
    paired,
    rounded_keys,
    row_sizes,
)
from mixwell.serve.keeping.rounded import rounded_cache
from tests.contracts._keeping import small


def loop(values, block, bits):
    found = []
    for start in range(0, len(values), block):
        part = values[start : start + block]
        largest = max(abs(v) for v in part)
        step = 2.0 ** (math.floor(math.log2(largest)) - bits + 2) if largest else 1.0
        most = 2 ** (bits - 1) - 1
        found += [max(-most, min(most, round(v / step))) * step for v in part]
    return found


@pytest.mark.parametrize(("block", "bits"), [(4, 4), (8, 3), (1, 8)])
def test_blocks_against_a_loop(generator, block, bits):
    x = torch.randn(3, 8, generator=generator) * torch.tensor([1.0, 50, 1e-3, 4, 1, 1, 2, 1])
    x[2] = 0
    for row, found in zip(x.tolist(), in_blocks(x, block, bits).tolist()):
        assert found == loop(row, block, bits)


def test_a_head_is_sorted_by_hand_and_scores_do_not_feel_the_order(generator):
    keys = torch.randn(1, 1, 3, 4, generator=generator)
    sizes = torch.tensor([[1.0, 4.0, 2.0, 3.0]])
    found = rounded_keys(keys, sizes, Config(block=2))
    order = [1, 3, 2, 0]
    for s in range(3):
        row = loop([float(keys[0, 0, s, i]) for i in order], 2, 4)
        for place, channel in enumerate(order):
            assert float(found[0, 0, s, channel]) == row[place]
    query = torch.randn(4, generator=generator)
    torch.testing.assert_close(found[0, 0] @ query, found[0, 0][:, order] @ query[order])
    unsorted = rounded_keys(keys, sizes, Config(block=2, sort=False))
    assert unsorted[0, 0, 0].tolist() == loop(keys[0, 0, 0].tolist(), 2, 4)


def test_both_members_of_a_pair_count_as_the_pair(generator):
    sizes = torch.tensor([[3.0, 1.0, 4.0, 1.0, 9.0, 2.0]])
    assert paired(sizes, 4).tolist() == [[5.0, pytest.approx(2**0.5), 5.0, pytest.approx(2**0.5), 9.0, 2.0]]
    assert torch.equal(paired(sizes, 0), sizes)
    weight = torch.randn(2, 6, 5, generator=generator)
    assert float(row_sizes(weight, 0)[1, 2]) == pytest.approx(float(weight[1, 2].square().sum().sqrt()))
    keys = torch.randn(2, 2, 7, 6, generator=generator)
    assert float(key_sizes(keys, 0)[1, 2]) == pytest.approx(float(keys[:, 1, :, 2].square().mean().sqrt()))


def test_sorted_blocks_lose_less_of_scores_where_channels_differ_and_nothing_at_the_width_of_a_head(generator):
    """Queries are small where keys are large, so that all channels count."""
    sizes = torch.randn(2, 64, generator=generator).exp()
    keys = torch.randn(1, 2, 100, 64, generator=generator) * sizes[:, None]
    queries = torch.randn(2, 100, 64, generator=generator) / sizes[:, None]
    errors = {}
    for block in (16, 64):
        for sort in (True, False):
            found = key_blocks(keys, sizes, Config(block=block, sort=sort))
            errors[block, sort] = float(((found.values - found.exact)[0] @ queries.mT).square().sum())
    assert errors[16, True] < 0.5 * errors[16, False] and errors[64, True] == errors[64, False]
    assert found.bits == keys.numel() * (4 + 8 / 64)


def test_a_models_cache_keeps_its_keys_so():
    """Sorted by its own rows of W_k: what a position finds is what attention over rounded keys gives."""
    model, text = small(), torch.randint(40, (1, 12), generator=torch.Generator().manual_seed(0))
    model.requires_grad_(False)
    usual = model.next_logits(text, model.new_cache())
    config = Config(bits=4, block=4)
    with rounded_cache(model, config):
        cache = model.new_cache()
        first = model.next_logits(text[:, :8], cache)
        whole = model.next_logits(text[:, 8:], cache)
    plain = model.new_cache()
    model.next_logits(text, plain)
    mixer = model.layers[0].sequence_mixer
    rows = slice(mixer.heads * mixer.width, (mixer.heads + mixer.kv_heads) * mixer.width)
    weight = mixer.qkv.weight[rows].detach().unflatten(0, (mixer.kv_heads, mixer.width))
    wanted = rounded_keys(plain.layers[0]._keys[:, :, :12], row_sizes(weight, mixer.turned), config)
    torch.testing.assert_close(cache.layers[0]._keys[:, :, :12], wanted, rtol=1e-4, atol=1e-5)
    assert bool(first.isfinite().all()) and 0 < float((whole - usual).abs().max()) < 1
    assert torch.equal(model.next_logits(text, model.new_cache()), usual)  # the block is over
    with rounded_cache(model, Config(bits=8, block=1)):
        close = model.next_logits(text, model.new_cache())
    assert float((close - usual).abs().max()) < 0.2 * float((whole - usual).abs().max())


def test_refusals(generator):
    keys = torch.ones(1, 1, 2, 8)
    with pytest.raises(ValueError, match="blocks of 3 do not divide heads of 8"):
        key_blocks(keys, torch.ones(1, 8), Config(block=3))
    refused = pytest.raises(MixwellError, match="blocks of 3 do not divide heads of")
    with refused, rounded_cache(small(), Config(block=3)):
        pass
    with pytest.raises(ValueError, match="bits is 9; expected 2 to 8"):
        Config(bits=9)
