"""Recycle routing: nothing is lost at top-1 and capacity factor 1, the served stay, places are drawn evenly."""

import pytest
import torch

from mixwell.core.routing import Context, Routing, expert_capacity
from mixwell.experts.overflow.drop import Config as DropConfig
from mixwell.experts.overflow.drop import drop
from mixwell.experts.overflow.recycle import Config, recycle
from tests.experts.overflow._loops import routing_of


@pytest.mark.parametrize("seed", range(5))
def test_no_token_is_dropped_at_capacity_factor_one(generator, seed):
    """The report's reason to recycle: 0 dropped where plain dropping loses tokens."""
    routing = routing_of(generator.manual_seed(seed), tokens=40, k=1)
    capacity = expert_capacity(1.0, 40, 1, 5)
    assert (drop(routing, DropConfig(), capacity, Context()).indices_TK < 0).any()
    found = recycle(routing, Config(), capacity, Context(generator=generator))
    assert (found.indices_TK >= 0).all() and found.load_E().tolist() == [capacity] * 5


def test_what_is_served_stays_and_the_rest_is_drawn_evenly_over_free_places(generator):
    """Twelve tokens on expert 0 with room for four; experts 1 and 2 have two and six places."""
    indices = torch.tensor([0] * 12 + [1] * 6 + [2] * 2)[:, None]
    routing = Routing(indices, torch.full((20, 1), 0.5), torch.full((20, 3), 0.3))
    counts = torch.zeros(3)
    for _ in range(60):
        found = recycle(routing, Config(), 8, Context(generator=generator)).indices_TK[:, 0]
        assert torch.equal(found[:8], indices[:8, 0]) and torch.equal(found[12:], indices[12:, 0])
        counts += torch.bincount(found[8:12], minlength=3)
    assert counts[0] == 0 and 0.15 < counts[1] / 240 < 0.35  # 2 of 8 places


@pytest.mark.parametrize("weight", ["slot", "score"])
def test_weight_of_a_recycled_token(generator, weight):
    routing = routing_of(generator, tokens=30, k=2)
    found = recycle(routing, Config(weight=weight), 12, Context(generator=generator))
    moved = (found.indices_TK != routing.indices_TK) & (found.indices_TK >= 0)
    assert moved.any()
    for t, k in moved.nonzero().tolist():
        new = routing.scores_TE[t, found.indices_TK[t, k]]
        assert found.weights_TK[t, k] == (routing.weights_TK[t, k] if weight == "slot" else new)


def test_a_token_never_gets_an_expert_twice_and_may_stay_dropped():
    routing = Routing(torch.tensor([[0, 1], [0, 1], [0, 1]]), torch.full((3, 2), 0.5), torch.ones(3, 2))
    found = recycle(routing, Config(), 2, Context(generator=torch.Generator().manual_seed(0)))
    assert found.indices_TK.tolist() == [[0, 1], [0, 1], [-1, -1]]


def test_without_a_generator_free_places_go_in_expert_order():
    routing = Routing(torch.zeros(4, 1, dtype=torch.int64), torch.ones(4, 1), torch.ones(4, 4))
    assert recycle(routing, Config(), 1, Context()).indices_TK[:, 0].tolist() == [0, 1, 2, 3]


def test_gradient(generator):
    weights = torch.rand(6, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    scores = torch.rand(6, 3, generator=generator, dtype=torch.float64)
    indices = torch.zeros(6, 1, dtype=torch.int64)
    assert torch.autograd.gradcheck(lambda w: recycle(Routing(indices, w, scores), Config(), 2, Context()).weights_TK,
                                    (weights,))


@pytest.mark.parametrize("capacity", [12, 15, 16])
def test_clashes_are_resolved_and_only_the_hopeless_stay_dropped(generator, capacity):
    """Tokens with three of four experts: nearly every free place is of an expert that the token has already."""
    for seed in range(20):
        routing = routing_of(generator.manual_seed(seed), tokens=20, experts=4, k=3)
        found = recycle(routing, Config(), capacity, Context(generator=generator))
        load = found.load_E()
        assert load.max() <= capacity
        room = {e for e in range(4) if load[e] < capacity}
        for row in found.indices_TK.tolist():
            held = {e for e in row if e >= 0}
            assert len(held) == 3 - row.count(-1)
            assert -1 not in row or room <= held
