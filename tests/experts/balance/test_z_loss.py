"""The z-loss against a loop, its gradient's direction, and a router without logits."""

import dataclasses
import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.balance.z_loss import Config, z_loss
from mixwell.experts.routers.top_k import Config as TopKConfig
from mixwell.experts.routers.top_k import route


def test_agrees_with_a_double_loop(generator):
    logits = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    expected = sum(math.log(sum(math.exp(v) for v in row)) ** 2 for row in logits.tolist()) / 9
    assert abs(z_loss(route(logits, TopKConfig()), Config(), Context()).item() - expected) < 1e-12


def test_a_step_down_its_gradient_shrinks_the_logits_and_keeps_the_choice():
    logits = torch.full((2, 3), 4.0, dtype=torch.float64) + torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64)
    logits.requires_grad_()
    z_loss(route(logits, TopKConfig(k=1)), Config(), Context()).backward()
    moved = logits.detach() - 0.1 * logits.grad
    assert (moved.logsumexp(-1) < logits.detach().logsumexp(-1)).all()
    assert torch.equal(moved.argmax(-1), logits.argmax(-1))


def test_is_zero_where_the_partition_is_one():
    logits = torch.full((4, 3), -math.log(3), dtype=torch.float64)
    assert z_loss(route(logits, TopKConfig()), Config(), Context()).abs() < 1e-20


def test_refuses_a_router_without_logits(generator):
    routing = dataclasses.replace(route(torch.randn(2, 3, generator=generator), TopKConfig()), logits_TE=None)
    with pytest.raises(ValueError, match="leave z_loss out"):
        z_loss(routing, Config(), Context())
