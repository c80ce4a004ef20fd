"""Priority by gate score against a loop for each order, and what is dropped first."""

import pytest
import torch

from mixwell.core.routing import Context, Routing
from mixwell.experts.overflow.priority import Config, priority
from tests.experts.overflow._loops import routing_of, serve_loop


def orders(weights, by):
    tokens, k = len(weights), len(weights[0])
    if by == "own":
        return sorted(((t, c) for t in range(tokens) for c in range(k)), key=lambda s: -weights[s[0]][s[1]])
    score = max if by == "max" else sum
    best = sorted(range(tokens), key=lambda t: -score(weights[t]))
    return [(t, c) for c in range(k) for t in best]


@pytest.mark.parametrize("by", ["max", "sum", "own"])
@pytest.mark.parametrize("capacity", [1, 4])
def test_agrees_with_a_loop(generator, by, capacity):
    routing = routing_of(generator)
    expected = serve_loop(routing.indices_TK.tolist(), orders(routing.weights_TK.tolist(), by), capacity)
    assert priority(routing, Config(by=by), capacity, Context()).indices_TK.tolist() == expected


@pytest.mark.parametrize("by", ["max", "sum", "own"])
def test_low_capacity_drops_the_lowest_scores_first(by):
    weights = torch.tensor([[0.2], [0.9], [0.5], [0.7]])
    routing = Routing(torch.zeros(4, 1, dtype=torch.int64), weights, torch.ones(4, 2))
    assert priority(routing, Config(by=by), 2, Context()).indices_TK[:, 0].tolist() == [-1, 0, -1, 0]


def test_own_order_lets_a_strong_second_choice_pass_a_weak_first_one():
    indices = torch.tensor([[0, 1], [1, 0]])
    weights = torch.tensor([[0.6, 0.4], [0.3, 0.2]])
    routing = Routing(indices, weights, torch.ones(2, 2))
    assert priority(routing, Config(by="own"), 1, Context()).indices_TK.tolist() == [[0, 1], [-1, -1]]
    assert priority(routing, Config(by="max"), 1, Context()).indices_TK.tolist() == [[0, -1], [1, -1]]


def test_a_higher_score_is_never_dropped_for_a_lower_one(generator):
    routing = routing_of(generator, tokens=40, k=1)
    kept = priority(routing, Config(), 5, Context()).indices_TK[:, 0] >= 0
    for expert in range(5):
        own = routing.indices_TK[:, 0] == expert
        if (own & ~kept).any():
            assert routing.weights_TK[own & kept].min() > routing.weights_TK[own & ~kept].max()
