"""Scores, centres and mergers against plain loops, head by head."""

import math

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.serve.keeping.evict_then_merge import Config, EvictThenMerge, example, joined, scores
from mixwell.serve.keeping.rules import Kept
from tests.contracts._keeping import prompt
from tests.serve.keeping.conftest import places_of


def by_hand(weights, keys, values, config):
    """One head in plain floats: rows of (key, value), centres by score, then the last positions."""
    length = len(keys)
    score = []
    for j in range(length):
        everywhere = sum(weights[i][j] for i in range(length)) / (length - j)
        lately = sum(weights[i][j] for i in range(length - config.recent, length)) / config.recent
        score.append((1 - config.local) * everywhere + config.local * lately)
    count, before = config.budget - config.recent, length - config.recent
    order = sorted(range(before), key=lambda j: -score[j])
    centres, others = order[:count], order[count : min(before, math.ceil(config.spare * count))]

    def cosine(one, two):
        dot = sum(a * b for a, b in zip(one, two))
        return dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in two))

    near = {j: max(centres, key=lambda c: cosine(keys[j], keys[c])) for j in others}
    cosines = sorted(cosine(keys[j], keys[near[j]]) for j in others)
    place = config.tau * (len(cosines) - 1)
    low = int(place)
    high = min(low + 1, len(cosines) - 1)
    limit = cosines[low] + (place - low) * (cosines[high] - cosines[low]) if cosines else 0.0
    rows = []
    for c in centres:
        group = [c] + [j for j in others if near[j] == c and cosine(keys[j], keys[c]) >= limit - 1e-12]
        total = sum(score[j] for j in group)
        rows.append([sum(score[j] * part[j][d] for j in group) / total for part in (keys, values) for d in range(4)])
    return rows + [keys[j] + values[j] for j in range(before, length)]


@pytest.mark.parametrize("options", [{}, {"local": 0.0}, {"local": 1.0, "tau": 0.0}, {"spare": 3.0, "tau": 0.3}])
def test_a_prompt_is_evicted_and_merged_as_in_plain_loops(options):
    weights, whole = prompt(16)
    config = Config(budget=7, recent=3, **options)
    kept = EvictThenMerge(config).prompt(weights, whole)
    for g in range(2):
        expected = by_hand(weights[0, g].tolist(), whole.keys[0, g].tolist(), whole.values[0, g].tolist(), config)
        found = torch.cat([kept.keys[0, g], kept.values[0, g]], -1)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_the_global_score_does_not_favour_the_beginning():
    """Equal weights for all that is seen: the mean over those that see a position is even, and late ones gain."""
    even = torch.ones(1, 1, 8, 8, dtype=torch.float64).tril()
    even = even / even.sum(-1, keepdim=True)
    found = scores(even, 2, 0.0)[0, 0]
    expected = [sum(1 / (i + 1) for i in range(j, 8)) / (8 - j) for j in range(8)]
    assert found.tolist() == pytest.approx(expected)
    assert scores(even, 2, 1.0)[0, 0].tolist() == pytest.approx([(1 / 7 + 1 / 8) / 2] * 7 + [1 / 16])


def test_merging_what_is_alike_leaves_it_and_nothing_joins_where_nothing_is_spare():
    weights, whole = prompt(16)
    alone = EvictThenMerge(Config(budget=7, recent=3, spare=1.0)).prompt(weights, whole)
    assert all(len(set(places)) == 7 for places in places_of(alone, whole))
    row = torch.ones(1, 1, 3, 4, dtype=torch.float64)
    same = joined(Kept(row, row), torch.ones(1, 1, 3, dtype=torch.float64), Kept(row, row),
                  torch.full((1, 1, 3), 0.5, dtype=torch.float64), 0.0)
    torch.testing.assert_close(same.keys, row)
    rule = EvictThenMerge(Config(budget=20, recent=3))
    assert rule.prompt(weights, whole) is whole and rule.token(weights[:, :, 0], whole) is whole
    assert example(generator(0))["config"].recent == 2


def test_impossible_options_are_refused():
    for options, words in (({"budget": 3, "recent": 3}, "more than recent"), ({"tau": 2}, "tau is 2"),
                           ({"local": -1}, "local is -1"), ({"spare": 0.5}, "spare is 0.5")):
        with pytest.raises(ValueError, match=words):
            Config(**options)
