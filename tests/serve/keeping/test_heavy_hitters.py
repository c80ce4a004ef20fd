"""Heavy hitters are those of plain sums, which go on over the answer."""

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.serve.keeping.heavy_hitters import Config, HeavyHitters, example
from mixwell.serve.keeping.rules import Kept
from tests.contracts._keeping import prompt
from tests.serve.keeping.conftest import places_of


def best(scores, count, recent):
    """Places of the largest scores before the last ones, and these."""
    before = list(range(len(scores) - recent))
    chosen = sorted(before, key=lambda place: -scores[place])[:count]
    return sorted(chosen) + list(range(len(scores) - recent, len(scores)))


def test_sums_of_all_queries_decide_and_go_on():
    weights, whole = prompt(12)
    rule = HeavyHitters(Config(budget=6, recent=2))
    kept = rule.prompt(weights, whole)
    sums = [[sum(float(weights[0, g, i, j]) for i in range(12)) for j in range(12)] for g in range(2)]
    places = [best(sums[g], 4, 2) for g in range(2)]
    assert places_of(kept, whole) == places
    draws = generator(7)
    for _ in range(4):
        fresh = torch.randn(1, 2, 1, 4, generator=draws, dtype=torch.float64)
        longer = Kept(torch.cat([kept.keys, fresh], 2), torch.cat([kept.values, fresh], 2))
        row = torch.rand(1, 2, 7, generator=draws, dtype=torch.float64).softmax(-1)
        sums = [[sums[g][place] for place in places[g]] + [0.0] for g in range(2)]
        sums = [[one + float(row[0, g, j]) for j, one in enumerate(sums[g])] for g in range(2)]
        kept = rule.token(row, longer)
        places = [best(sums[g], 4, 2) for g in range(2)]
        assert places_of(kept, longer) == places


def test_early_positions_gain_by_being_seen_often():
    """What the card says it fails at: equal weights for all that is seen favour the beginning."""
    even = torch.ones(1, 1, 8, 8, dtype=torch.float64).tril()
    even = even / even.sum(-1, keepdim=True)
    keys = torch.arange(8.0, dtype=torch.float64).view(1, 1, 8, 1)
    kept = HeavyHitters(Config(budget=4, recent=1)).prompt(even, Kept(keys, keys))
    assert kept.keys.flatten().tolist() == [0, 1, 2, 7]
    assert example(generator(0))["config"].budget == 5
    with pytest.raises(ValueError, match="at least recent"):
        Config(budget=3, recent=4)
