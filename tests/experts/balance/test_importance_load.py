"""Importance and load losses against loops, the smooth count against drawn noise, and balance."""

import dataclasses
import math

import pytest
import torch

from mixwell.core.routing import Context, Routing
from mixwell.experts.balance.importance_load import Config, importance_load, smooth_load, squared_variation
from mixwell.experts.routers.top_k import Config as TopKConfig
from mixwell.experts.routers.top_k import route


def cv2(values):
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / len(values) / mean**2


def load_loop(h, g, s, k):
    loads = [0.0] * len(h[0])
    for clean, noisy in zip(h, g):
        for i in range(len(clean)):
            others = sorted((v for j, v in enumerate(noisy) if j != i), reverse=True)
            loads[i] += 0.5 * (1 + math.erf((clean[i] - others[k - 1]) / s / math.sqrt(2)))
    return loads


@pytest.mark.parametrize("options", [{}, {"load": 0.0}, {"importance": 0.0, "noise_std": 0.7},
                                     {"importance": 0.5, "load": 2.0}])
def test_agrees_with_a_loop(generator, options):
    logits = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    routing, config = route(logits, TopKConfig(k=2)), Config(**options)
    gates = [sum(w for row, ws in zip(routing.indices_TK.tolist(), routing.weights_TK.tolist())
                 for e, w in zip(row, ws) if e == i) for i in range(5)]
    h = logits.tolist()
    expected = config.importance * cv2(gates) + config.load * cv2(load_loop(h, h, config.noise_std or 0.2, 2))
    assert abs(importance_load(routing, config, Context()).item() - expected) < 1e-12


def test_smooth_load_is_the_chance_of_being_chosen_when_ones_own_noise_is_redrawn(generator):
    clean = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    noisy = clean + 0.5 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    drawn = torch.zeros(4, dtype=torch.float64)
    for i in range(4):
        again = noisy.expand(20000, 3, 4).clone()
        again[..., i] = clean[:, i] + 0.5 * torch.randn(20000, 3, generator=generator, dtype=torch.float64)
        drawn[i] = (again.topk(2, dim=-1).indices == i).any(-1).double().mean(0).sum()
    torch.testing.assert_close(smooth_load(clean, noisy, 0.5, 2), drawn, atol=0.02, rtol=0)


def test_gradient_of_the_smooth_load(generator):
    clean, noisy = (torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    std = torch.rand(4, 5, generator=generator, dtype=torch.float64).add(0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: smooth_load(*a, 2), (clean, noisy, std))


def test_zero_at_balance_and_all_experts_chosen():
    logits = torch.eye(4, dtype=torch.float64)
    assert importance_load(route(logits, TopKConfig(k=1)), Config(), Context()) < 1e-20
    torch.testing.assert_close(smooth_load(logits, logits, 1.0, 4), torch.full((4,), 4.0, dtype=torch.float64))


def test_equal_importance_with_unequal_load_is_seen_by_the_load_term_alone():
    """Shazeer's reason for the second loss: one expert with one strong token, one with many weak ones."""
    indices = torch.tensor([[0], [1], [1], [1], [1]])
    weights = torch.tensor([[1.0], [0.25], [0.25], [0.25], [0.25]])
    logits = torch.where(torch.nn.functional.one_hot(indices[:, 0], 2).bool(), 2.0, -2.0)
    routing = Routing(indices, weights, logits.softmax(-1), logits)
    assert importance_load(routing, Config(load=0.0), Context()) < 1e-12
    assert importance_load(routing, Config(importance=0.0), Context()) > 0.3


def test_refusals(generator):
    with pytest.raises(ValueError, match="not both 0"):
        Config(importance=0.0, load=0.0)
    with pytest.raises(ValueError, match="above 0"):
        Config(noise_std=0.0)
    routing = route(torch.randn(2, 3, generator=generator), TopKConfig())
    with pytest.raises(ValueError, match="set load: 0"):
        importance_load(dataclasses.replace(routing, logits_TE=None), Config(), Context())


def test_variation_of_equal_values_is_zero():
    assert squared_variation(torch.full((4,), 3.0)) == 0 and squared_variation(torch.zeros(4)) == 0
