"""Dropout inside experts: its share, its scale, its gradient, and silence outside training."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.hidden_dropout import Config, hidden_dropout


def fresh():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_agrees_with_a_loop_over_the_same_draw(generator, rate):
    h = torch.randn(40, 50, generator=generator, dtype=torch.float64)
    found = hidden_dropout(h, Config(rate=rate), Context(generator=fresh()))
    draw = torch.rand(40, 50, generator=fresh()).tolist()
    expected = [[v / (1 - rate) if u >= rate else 0.0 for v, u in zip(a, b)] for a, b in zip(h.tolist(), draw)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert abs((found == 0).double().mean().item() - rate) < 0.03


def test_keeps_the_mean():
    found = hidden_dropout(torch.ones(300, 300), Config(), Context(generator=fresh()))
    assert abs(found.mean().item() - 1) < 0.01


def test_gradient(generator):
    h = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: hidden_dropout(a, Config(), Context(generator=fresh())), (h,))


def test_nothing_drops_without_a_generator_or_a_rate(generator):
    h = torch.randn(4, 5, generator=generator)
    assert hidden_dropout(h, Config(), Context()) is h
    assert hidden_dropout(h, Config(rate=0.0), Context(generator=generator)) is h


def test_half_width_stays_half_width(generator):
    h = torch.randn(4, 5, generator=generator).bfloat16()
    assert hidden_dropout(h, Config(), Context(generator=generator)).dtype == torch.bfloat16


def test_refuses_a_rate_of_one():
    with pytest.raises(ValueError, match="0 up to 1"):
        Config(rate=1.0)
