"""Dropping by position against a loop, with the capacity formula and the bias that the rule is known for."""

import pytest
import torch

from mixwell.core.routing import Context, Routing, expert_capacity
from mixwell.experts.overflow.drop import Config, drop
from tests.experts.overflow._loops import routing_of, serve_loop


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("capacity", [1, 3, 7])
def test_agrees_with_a_loop_over_choices_then_tokens(generator, k, capacity):
    routing = routing_of(generator, k=k)
    expected = serve_loop(routing.indices_TK.tolist(), [(t, c) for c in range(k) for t in range(20)], capacity)
    assert drop(routing, Config(), capacity, Context()).indices_TK.tolist() == expected


def test_gradient_reaches_the_served_weights_alone(generator):
    weights = torch.rand(6, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    routing = Routing(torch.zeros(6, 1, dtype=torch.int64), weights, torch.rand(6, 2, generator=generator))
    assert torch.autograd.gradcheck(lambda w: drop(Routing(routing.indices_TK, w, routing.scores_TE), Config(), 2,
                                                   Context()).weights_TK, (weights,))


def test_the_tail_is_starved():
    routing = Routing(torch.zeros(8, 1, dtype=torch.int64), torch.ones(8, 1), torch.ones(8, 2))
    assert drop(routing, Config(), 3, Context()).indices_TK[:, 0].tolist() == [0, 0, 0, -1, -1, -1, -1, -1]


@pytest.mark.parametrize("factor, tokens, k, experts, expected", [
    (1.0, 8, 1, 4, 2), (1.25, 8, 1, 4, 3), (1.0, 9, 2, 4, 5), (2.0, 0, 1, 4, 0), (0.1, 100, 2, 20, 1),
    (1.1, 10, 1, 1, 11),
])
def test_capacity(factor, tokens, k, experts, expected):
    assert expert_capacity(factor, tokens, k, experts) == expected


def test_capacity_refuses():
    with pytest.raises(ValueError, match="above 0"):
        expert_capacity(0.0, 8, 1, 4)
