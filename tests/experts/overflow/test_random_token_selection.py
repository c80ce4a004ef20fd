"""Random token selection: the order drawn decides, every position has the same chance, and no loss against dropping."""

import torch

from mixwell.core.routing import Context, Routing
from mixwell.experts.overflow.random_token_selection import Config, random_token_selection
from tests.experts.overflow._loops import routing_of, serve_loop


def test_agrees_with_a_loop_over_the_drawn_order(generator):
    routing = routing_of(generator)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3)).tolist()
    expected = serve_loop(routing.indices_TK.tolist(), [(t, c) for c in range(2) for t in order], 3)
    found = random_token_selection(routing, Config(), 3, Context(generator=torch.Generator().manual_seed(3)))
    assert found.indices_TK.tolist() == expected


def test_every_position_is_served_equally_often(generator):
    """Prefix order serves positions 0 to 7 always and the rest never; here each is served half the time."""
    routing = Routing(torch.zeros(16, 1, dtype=torch.int64), torch.ones(16, 1), torch.ones(16, 2))
    served = sum((random_token_selection(routing, Config(), 8, Context(generator=generator)).indices_TK >= 0).float()
                 for _ in range(300)) / 300
    assert served.min() > 0.38 and served.max() < 0.62  # 0.5 with a standard error of 0.03


def test_without_a_generator_the_order_is_that_of_positions():
    routing = Routing(torch.zeros(4, 1, dtype=torch.int64), torch.ones(4, 1), torch.ones(4, 2))
    assert random_token_selection(routing, Config(), 2, Context()).indices_TK[:, 0].tolist() == [0, 0, -1, -1]


def test_as_many_are_served_as_by_position(generator):
    routing = routing_of(generator, k=1)
    found = random_token_selection(routing, Config(), 3, Context(generator=generator))
    assert torch.equal(found.load_E(), routing.load_E().clamp(max=3))
