"""Munit scaling: the product beside a loop, and variances that stay at one."""

import math

import pytest
import torch

from mixwell.precision.training.unit_scaling import (
    Config,
    UnitScaling,
    hidden_rate,
    multiplier,
    residual,
    unit_weight,
)
from tests.contracts._tools import fresh
from tests.precision.training.test_float8 import E4M3, E5M2, nearest, times


def rounded(rows, form):
    return [[nearest(value, form) for value in row] for row in rows]


def test_forward_and_both_gradients_against_a_loop():
    g = fresh(3)
    x, weight, dy = (torch.randn(shape, generator=g) for shape in ((3, 4), (2, 4), (3, 2)))
    x[0, 0], dy[0, 0] = 1000.0, 1e6  # both are cut
    y = UnitScaling((2, 4), Config(), g)(x.requires_grad_(), weight.requires_grad_())
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    rx, rw, rd = rounded(x.tolist(), E4M3), rounded(weight.tolist(), E4M3), rounded(dy.tolist(), E5M2)
    assert rx[0][0] == 448 and rd[0][0] == 57344
    for found, expected in ((y, times(rx, list(zip(*rw)))), (dx, times(rd, rw)), (dw, times(list(zip(*rd)), rx))):
        torch.testing.assert_close(found, torch.tensor(expected) * 0.5, rtol=1e-5, atol=1e-6)


def test_the_head_is_divided_by_all_of_its_inputs_and_float32_by_the_same():
    x, weight = torch.randn(3, 16, generator=fresh(1)), torch.randn(5, 16, generator=fresh(2))
    found = UnitScaling((5, 16), Config(place="head", eight_bits=False), fresh())(x, weight)
    torch.testing.assert_close(found, x @ weight.T / 16)
    assert multiplier(16) == 0.25 and multiplier(16, "head") == 0.0625


def test_signals_and_gradients_keep_variance_one_through_depth_and_residuals():
    g, width = fresh(4), 256
    x = torch.randn(512, width, generator=g).requires_grad_()
    h, take = x, UnitScaling((width, width), Config(), g)
    for _ in range(6):
        h = residual(h, take(h, unit_weight((width, width), g)), 0.4)
    y = take(h, unit_weight((width, width), g))
    (slope,) = torch.autograd.grad(y, x, torch.randn(512, width, generator=g))
    assert 0.8 < float(h.detach().std()) < 1.25 and 0.8 < float(y.detach().std()) < 1.25
    assert 0.3 < float(slope.std()) < 2
    usual = unit_weight((width, width), g) * 0.002  # a small start falls out of the format
    assert not UnitScaling((width, width), Config(), g)(torch.ones(1, width), usual * 0.1).any()


def test_tau_mixes_squares():
    h, branch = torch.randn(2, 8, generator=fresh(5)), torch.randn(2, 8, generator=fresh(6))
    assert torch.equal(residual(h, branch, 0.0), h)
    row = branch[0].tolist()
    mean = sum(row) / 8
    size = math.sqrt(sum((value - mean) ** 2 for value in row) / 8 + 1e-5)
    expected = [math.sqrt(0.75) * a + 0.5 * (b - mean) / size for a, b in zip(h[0].tolist(), row)]
    assert residual(h, branch, 0.25)[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert hidden_rate(1.0, 256, 1024) == 0.5


def test_refusals():
    with pytest.raises(ValueError, match="place is 'embedding'"):
        Config(place="embedding")
    with pytest.raises(ValueError, match=r"tau is 1\.5; expected 0 to 1"):
        residual(torch.ones(1, 2), torch.ones(1, 2), 1.5)
