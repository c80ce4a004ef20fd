"""The Switch loss against a double loop, and the values its paper names."""

import torch

from mixwell.core.routing import Context
from mixwell.experts.balance.switch import Config, switch
from mixwell.experts.routers.top_k import Config as TopKConfig
from mixwell.experts.routers.top_k import route


def loop(scores, indices):
    tokens, experts = len(scores), len(scores[0])
    slots = sum(len(row) for row in indices)
    f = [sum(row.count(e) for row in indices) / slots for e in range(experts)]
    p = [sum(row[e] / sum(row) for row in scores) / tokens for e in range(experts)]
    return experts * sum(a * b for a, b in zip(f, p))


def test_agrees_with_a_double_loop(generator):
    logits = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    for config in (TopKConfig(k=2), TopKConfig(k=1), TopKConfig(k=2, scores="sigmoid")):
        routing = route(logits, config)
        expected = loop(routing.scores_TE.tolist(), routing.indices_TK.tolist())
        assert abs(switch(routing, Config(), Context()).item() - expected) < 1e-12


def test_its_gradient_moves_probability_from_busy_to_idle_experts():
    logits = torch.tensor([[2.0, 1.0, 0.0]] * 4, dtype=torch.float64, requires_grad=True)
    switch(route(logits, TopKConfig(k=1)), Config(), Context()).backward()
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 2] < 0).all()


def test_is_num_experts_at_full_collapse():
    logits = torch.tensor([[50.0, 0, 0, 0]] * 3, dtype=torch.float64)
    torch.testing.assert_close(switch(route(logits, TopKConfig(k=1)), Config(), Context()).item(), 4.0)
