"""Co-activation against a loop over tokens, independence, and top-1."""

import pytest
import torch

from mixwell.core.routing import Context, Routing
from mixwell.experts.analysis.co_activation import Config, co_activation


def routing_of(indices, experts=4):
    slots = torch.as_tensor(indices)
    return Routing(slots, torch.ones(slots.shape), torch.ones(len(slots), experts))


def test_agrees_with_a_loop(generator):
    scores = torch.rand(30, 5, generator=generator)
    indices = scores.topk(2, dim=-1).indices
    found = co_activation(routing_of(indices, 5), Config(pairs=3), Context())
    sets = [set(row) for row in indices.tolist()]
    for i in range(5):
        own = sum(i in s for s in sets)
        for j in range(5):
            both = sum(i in s and j in s for s in sets)
            other = sum(j in s for s in sets)
            assert found["counts"][i][j] == both
            assert found["conditional"][i][j] == pytest.approx(both / own)
            assert found["lift"][i][j] == pytest.approx(both * 30 / own / other)
    pairs = sorted((found["conditional"][i][j] for i in range(5) for j in range(5) if i != j), reverse=True)
    assert [p for _, _, p in found["strongest"]] == pytest.approx(pairs[:3])
    assert found["mean_conditional"] == pytest.approx(sum(pairs) / 20)


def test_no_more_pairs_are_listed_than_there_are(generator):
    indices = torch.rand(30, 4, generator=generator).topk(2, dim=-1).indices
    listed = co_activation(routing_of(indices), Config(pairs=50), Context())["strongest"]
    assert sorted((i, j) for i, j, _ in listed) == [(i, j) for i in range(4) for j in range(4) if i != j]


def test_experts_that_always_go_together_stand_out():
    found = co_activation(routing_of([[0, 1], [1, 0], [2, 3], [3, 2]]), Config(pairs=2), Context())
    assert found["conditional"][0][1] == 1 and found["lift"][0][1] == 2 and found["conditional"][0][2] == 0
    assert {(i, j) for i, j, _ in found["strongest"]} <= {(0, 1), (1, 0), (2, 3), (3, 2)}


def test_top_1_has_none():
    assert co_activation(routing_of([[0], [1], [2]]), Config(pairs=0), Context())["mean_conditional"] == 0


def test_refuses_negative_pairs():
    with pytest.raises(ValueError, match="0 or more"):
        Config(pairs=-1)
