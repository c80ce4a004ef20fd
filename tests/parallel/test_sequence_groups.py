"""Sequences to groups: as good as trying everything on small cases, within memory, equal groups where all is equal."""

import itertools

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.parallel.sequence_groups import (
    Config,
    assigned,
    best_equal,
    bucketed,
    equal_groups,
    example,
    pass_s,
    sequence_groups,
    sequence_s,
    solved,
)

SMALL = Config(workers=4, node=2, capacity=1000, square_s=1e-6, token_s=1e-4, bias_s=0.1, token_bytes=1e6,
               inside_bytes_per_s=1e11, between_bytes_per_s=1e9, buckets=8, gap=0.0)


def by_trying(lengths, config):
    """The fastest of all groups of powers of two and all assignments."""
    sizes = [size for size in (1, 2, 4) for _ in range(config.workers // size)]
    best = float("inf")
    for group in itertools.product(range(len(sizes)), repeat=len(lengths)):
        used = set(group)
        tokens = [sum(l for l, g in zip(lengths, group) if g == number) for number in range(len(sizes))]
        fits = all(tokens[number] <= sizes[number] * config.capacity for number in used)
        if fits and sum(sizes[number] for number in used) <= config.workers:
            best = min(best, pass_s(lengths, group, sizes, config))
    return best


@pytest.mark.parametrize("lengths", [[900, 300, 200, 100], [1900, 900, 400], [3500, 100, 50], [400, 400, 400, 400]])
def test_the_program_finds_what_trying_everything_finds(lengths):
    found = solved(lengths, SMALL)
    assert found.seconds == pytest.approx(by_trying(lengths, SMALL))


def test_costs_by_hand():
    assert sequence_s(100, 1, SMALL) == pytest.approx(1e-6 * 1e4 + 1e-2)
    assert sequence_s(100, 2, SMALL) == pytest.approx((2e-2 + 1e8 / 1e11) / 2)
    assert sequence_s(100, 4, SMALL) == pytest.approx((2e-2 + 1e8 / 1e9) / 4)
    assert pass_s([100, 100, 50], [0, 0, 1], [1, 2], SMALL) == pytest.approx(0.1 + 2 * 2e-2)


def test_every_sequence_has_its_place_and_its_room():
    given = example(generator(0))
    found, config = sequence_groups(**given), given["config"]
    lengths = given["lengths_S"]
    for number in range(int(found.pass_S.max()) + 1):
        own = found.pass_S == number
        sizes = dict(zip(found.group_S[own].tolist(), found.size_S[own].tolist()))
        assert sum(sizes.values()) <= config.workers
        for group, size in sizes.items():
            assert int(lengths[own & (found.group_S == group)].sum()) <= size * config.capacity
    assert float(found.seconds) <= best_equal(lengths.tolist(), config).seconds


def test_unequal_groups_pay_where_links_between_nodes_are_slow():
    """A sequence that needs a whole cluster's half beside short ones, which equal groups would drag over slow links."""
    config = Config(workers=8, node=2, capacity=1000, bias_s=0.0, token_bytes=1e7, between_bytes_per_s=1e9, gap=0.0)
    lengths = [2100, *[150] * 24]
    found = solved(lengths, config)
    assert sorted(found.sizes)[-1] == 4 and min(found.sizes) < 4
    assert found.seconds < 0.8 * best_equal(lengths, config).seconds
    alike = [500] * 16
    assert assigned(alike, config)[0].seconds == pytest.approx(best_equal(alike, config).seconds, rel=0.05)


def test_buckets_count_the_fewest_tokens_too_much():
    lengths = [5, 100, 7, 6, 90, 50, 51]
    tops, places = bucketed(lengths, 3)
    assert sorted(itertools.chain(*places)) == list(range(7))
    assert all(top == max(lengths[place] for place in own) for top, own in zip(tops, places))

    def waste(cut):
        rising = sorted(lengths)
        parts = [rising[a:b] for a, b in itertools.pairwise((0, *cut, 7))]
        return sum(max(part) * len(part) - sum(part) for part in parts)

    least = min(waste(cut) for cut in itertools.combinations(range(1, 7), 2))
    assert sum(top * len(own) for top, own in zip(tops, places)) - sum(lengths) == least


def test_a_batch_that_is_too_large_is_cut():
    found = assigned([900] * 6, SMALL)
    assert len(found) == 2 and sorted(place for one in found for place in one.places) == list(range(6))
    assert equal_groups([1001], 1, SMALL) is None and best_equal([4001], SMALL) is None
    assert equal_groups([500], 4, Config(workers=4, node=2, nodes_searched=5)).sizes == [4]


def test_refusals():
    with pytest.raises(ValueError, match="a sequence has 4001 tokens; 4 workers hold 4000"):
        sequence_groups(torch.tensor([10, 4001]), SMALL)
    with pytest.raises(ValueError, match="workers is 6; expected a power of two"):
        Config(workers=6)
    with pytest.raises(ValueError, match="capacity is 0"):
        Config(capacity=0)
