"""A prompt read by a chain of workers is read exactly, with half the traffic; the search finds pieces that shrink."""

import itertools

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.parallel.wire import in_threads
from mixwell.serve.runahead import Config, attention, even, example, finish, runahead

H, D = 2, 4


def loop(query, key, value):
    """Each place and head by itself."""
    out = torch.zeros_like(query)
    for s in range(len(query)):
        for h in range(H):
            weights = torch.stack([query[s, h] @ key[t, h] for t in range(s + 1)]).div(D**0.5).softmax(0)
            out[s, h] = sum(weights[t] * value[t, h] for t in range(s + 1))
    return out


@pytest.mark.parametrize("bounds", [[0, 12], [0, 5, 12], [0, 7, 10, 12], [0, 1, 2, 11, 12]])
def test_the_chain_reads_what_one_worker_reads(bounds):
    draws = generator(len(bounds))
    whole = [torch.randn(12, H, D, generator=draws, dtype=torch.float64) for _ in range(3)]

    def work(wire):
        own = [part[bounds[wire.rank] : bounds[wire.rank + 1]] for part in whole]
        return attention(*own, bounds, wire), wire.sent["exchange"]

    found = in_threads(len(bounds) - 1, work)
    torch.testing.assert_close(torch.cat([part for part, _ in found]), loop(*whole))
    sent = sum(count for _, count in found)
    assert sent == 2 * sum(bounds[1:-1]) * H * D * 8  # keys and values of sum_i c_i positions


def by_hand(bounds, config):
    """The recursion of the card, term by term."""
    start, done = {}, {}
    for layer, i in itertools.product(range(config.layers), range(config.processes)):
        rows = bounds[i + 1] - bounds[i]
        own = done.get((i, layer - 1), 0.0) + config.project_time * rows
        given = start[i - 1, layer] + config.position_time * bounds[i] if i else 0.0
        start[i, layer] = max(own, given)
        pairs = sum(place + 1 for place in range(bounds[i], bounds[i + 1]))
        done[i, layer] = start[i, layer] + (config.row_time - config.project_time) * rows + config.pair_time * pairs
    return done[config.processes - 1, config.layers - 1]


def test_times_are_those_of_the_recursion():
    config = Config(processes=3, layers=4, row_time=1.0, project_time=0.2, pair_time=0.03, position_time=0.4)
    for bounds in ([0, 10, 20, 30], [0, 15, 24, 30], [0, 1, 2, 30]):
        assert finish(bounds, config) == pytest.approx(by_hand(bounds, config))
    alone = Config(processes=1, layers=3, row_time=1.0, project_time=0.2, pair_time=0.1, position_time=9.0)
    assert finish([0, 8], alone) == pytest.approx(3 * (8 * 1.0 + 0.1 * 36))


def test_the_search_finds_shrinking_pieces_as_good_as_any():
    config = Config(processes=3, layers=3, row_time=0.1, project_time=0.01, pair_time=0.05, position_time=0.01)
    found = runahead(24, config)
    best = min(finish([0, a, b, 24], config) for a, b in itertools.combinations(range(1, 24), 2))
    assert finish(found, config) == pytest.approx(best, rel=0.01)
    sizes = [last - first for first, last in itertools.pairwise(found)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    assert finish(found, config) < finish(even(24, 3), config)
    assert runahead(**example(generator(0)))[0] == 0


def test_impossible_chains_are_refused():
    with pytest.raises(ValueError, match="one for each"):
        runahead(3, Config(processes=4))
    with pytest.raises(ValueError, match="at most row_time"):
        Config(row_time=1.0, project_time=2.0)
    with pytest.raises(ValueError, match="pair_time is -1"):
        Config(pair_time=-1)
