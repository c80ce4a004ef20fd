"""A mixture of prompts against a dumb search, its clusters, its routing, what it refuses."""

import pytest
import torch

from mixwell.adapters.protocols.prompts import Config, clusters, members, nearest, prompts
from mixwell.core.errors import MixwellError
from tests.contracts._tools import fresh

HEAPS = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])


def demos(count=8, seed=1, spread=0.5):
    noise = spread * torch.randn(3 * count, 2, generator=fresh(seed))
    return (HEAPS + 1).repeat_interleave(count, 0) + noise


def heap(place):
    return place // 8


def told(demos_, queries, answers):
    """How often an instruction (the number of a heap) fits queries, demonstrations of the heap helping a little."""
    def score(instruction, own, asked):
        fits = [0.1 * any(heap(d) == answers[q] for d in own) + (instruction == answers[q]) for q in asked]
        return sum(fits) / len(fits)
    return score


def mixture(**options):
    rows = demos()
    queries = demos(4, seed=2)
    answers = [q // 4 for q in range(12)]
    asked = []

    def propose(places):
        asked.append(list(places))
        return heap(places[0])

    config = Config(**{"most": 5, "proposals": 12, "demos": 3, "queries": 4, "candidates": 12} | options)
    found = prompts(rows, queries, config, fresh(), propose=propose, score=told(rows, queries, answers))
    return found, rows, queries, asked


def test_each_region_finds_its_instruction_and_queries_go_there():
    found, _, queries, asked = mixture()
    assert len(found.centres_KD) == 3
    for expert, (centre, own) in enumerate(zip(found.centres_KD, found.demos_Km.tolist())):
        there = int((HEAPS + 1 - centre).square().sum(1).argmin())
        assert {heap(place) for place in own} == {there} and found.instructions[expert] == there
    routed = found.expert_of(queries)
    for q, row in enumerate(queries):
        distances = [float((row - centre).square().sum()) for centre in found.centres_KD]
        assert int(routed[q]) == distances.index(min(distances))
    for expert in range(3):  # an instruction is proposed from what is not the expert's
        own = set(found.demos_Km[expert].tolist())
        assert all(not own & set(places) and len(places) == 5 for places in asked[4 * expert : 4 * expert + 4])


def test_the_number_of_experts_pays_for_itself():
    from sklearn.cluster import KMeans

    rows = demos()
    inertia = [KMeans(k, n_init=10, random_state=0).fit(rows.numpy()).inertia_ for k in range(1, 6)]
    for penalty in (0.02, 0.5):
        costs = [inertia[k - 1] / inertia[0] + penalty * k for k in range(2, 6)]
        cluster_N, centres = clusters(rows, Config(most=5, penalty=penalty), fresh())
        assert len(centres) == 2 + costs.index(min(costs)) and int(cluster_N.max()) + 1 == len(centres)
    assert len(clusters(rows, Config(most=1), fresh())[1]) == 1


def test_larger_clusters_are_drawn_from_and_smaller_ones_repeated():
    cluster = torch.tensor([0, 1, 0, 0, 0, 1])
    own, rest = members(cluster, 0, 3, fresh())
    assert sorted(own + rest) == [0, 2, 3, 4] and len(own) == 3
    assert sorted(members(cluster, 1, 5, fresh())[0])[0] == 1 and set(members(cluster, 1, 5, fresh())[0]) == {1, 5}
    assert len(members(cluster, 1, 5, fresh())[0]) == 5 and members(cluster, 1, 5, fresh())[1] == []


def test_an_expert_is_judged_by_its_own_queries_and_the_empty_instruction_is_tried():
    found, *_ = mixture(candidates=0)
    assert found.instructions == [None] * 3
    one, *_ = mixture(most=1)
    assert len(one.instructions) == 1
    near = nearest(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [5.0, 1.0], [1.0, 0.0]]), 2)
    assert near == [2, 1]


def test_what_cannot_be_is_refused():
    rows = demos()
    with pytest.raises(MixwellError, match=r"embeddings of queries have the shape \(0, 2\)"):
        prompts(rows, rows[:0], Config(), fresh(), propose=sum, score=max)
    with pytest.raises(MixwellError, match="embedded in 2 numbers and queries in 1"):
        prompts(rows, rows[:, :1], Config(), fresh(), propose=sum, score=max)
    for options, message in (({"most": 0}, "most is 0"), ({"penalty": -1.0}, "penalty is -1")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
