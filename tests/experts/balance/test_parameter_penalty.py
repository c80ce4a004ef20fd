"""The parameter penalty against a loop; equal sizes are the Switch loss; the gradient prefers small experts."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.balance.parameter_penalty import Config, parameter_penalty
from mixwell.experts.balance.switch import Config as SwitchConfig
from mixwell.experts.balance.switch import switch
from mixwell.experts.routers.top_k import Config as TopKConfig
from mixwell.experts.routers.top_k import route

SIZES = (1.0, 2.0, 4.0, 8.0)


def loop(scores, indices, sizes):
    slots = sum(len(row) for row in indices)
    mean = sum(sizes) / len(sizes)
    m = [sum(row.count(e) for row in indices) / slots * sizes[e] / mean for e in range(len(sizes))]
    p = [sum(row[e] for row in scores) / len(scores) for e in range(len(sizes))]
    return len(sizes) * sum(a * b for a, b in zip(m, p))


@pytest.mark.parametrize("k", [1, 2])
def test_agrees_with_a_loop_and_has_its_gradient(generator, k):
    logits = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)

    def loss(h):
        return parameter_penalty(route(h, TopKConfig(k=k)), Config(sizes=SIZES), Context())

    routing = route(logits.detach(), TopKConfig(k=k))
    expected = loop(routing.scores_TE.tolist(), routing.indices_TK.tolist(), SIZES)
    assert abs(loss(logits).item() - expected) < 1e-12
    assert torch.autograd.gradcheck(loss, (logits,))


def test_equal_sizes_are_the_switch_loss_in_any_unit(generator):
    routing = route(torch.randn(9, 4, generator=generator), TopKConfig())
    for size in (1.0, 4096.0):
        found = parameter_penalty(routing, Config(sizes=(size,) * 4), Context())
        torch.testing.assert_close(found, switch(routing, SwitchConfig(), Context()))


def test_at_even_load_it_still_moves_probability_from_large_to_small():
    logits = (0.1 * torch.eye(4, dtype=torch.float64)).requires_grad_()
    parameter_penalty(route(logits, TopKConfig(k=1)), Config(sizes=SIZES), Context()).backward()
    moved = -logits.grad.sum(0)
    assert moved.tolist() == sorted(moved.tolist(), reverse=True) and moved[0] > 0 > moved[3]


def test_refusals(generator):
    with pytest.raises(ValueError, match="above 0"):
        Config(sizes=(1.0, 0.0))
    with pytest.raises(ValueError, match="2 sizes for 4 experts"):
        parameter_penalty(route(torch.randn(3, 4, generator=generator), TopKConfig()), Config(sizes=(1.0, 2.0)),
                          Context())
