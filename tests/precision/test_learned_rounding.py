"""Learned rounding: its start, its terms and one step by hand, up or down only, less error than nearest."""

import itertools

import pytest
import torch

from mixwell.precision._parts import grid_of, grouped, nearest
from mixwell.precision._rounding import beta_at, share_up, start, undecided
from mixwell.precision._statistics import output_error
from mixwell.precision.learned_rounding import (
    Config,
    encode,
    encode_all,
    learn,
    promises,
)


def moments(generator, width=16, rows=300):
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64) * torch.logspace(0, -1.5, width)
    x = x @ mixing
    return x.T @ x * 2 / rows


def test_starts_at_the_fraction_and_ends_at_the_sides():
    fraction = torch.tensor([0.0, 0.25, 0.5, 0.99], dtype=torch.float64)
    torch.testing.assert_close(share_up(start(fraction)), fraction)
    assert (start(fraction) >= 0).tolist() == [False, False, True, True]
    assert share_up(torch.tensor([-9.0, 9.0])).tolist() == [0.0, 1.0]
    assert float(undecided(torch.tensor([0.0, 1.0]), 2.0)) == 0
    assert float(undecided(torch.tensor([0.5, 0.75]), 2.0)) == pytest.approx(1.75)


def test_beta_falls_behind_the_warm_up():
    assert beta_at(1, 10, 0.2) is None
    assert beta_at(2, 10, 0.2) == 20 and beta_at(6, 10, 0.2) == pytest.approx(11)


def test_one_step_goes_against_the_gradient_of_a_loop(generator):
    """Adam's first step is the learning rate against the sign of the gradient, which differences of a loop give."""
    weight, H = torch.randn(2, 8, generator=generator).double(), moments(generator, 8)
    config = Config(bits=3, group_size=8, steps=1, lr=0.01, warm_up=0.0, weight=0.3)
    groups = grouped(weight, 8)
    grid = grid_of(groups, 3, True)
    s = grid.real.double()
    first = start(groups / s.unsqueeze(-1) - (groups / s.unsqueeze(-1)).floor())
    unit = float(H.diagonal().mean()) * float(s.square().mean())

    def loss(V):
        total = 0.0
        for o in range(2):
            step = float(s[o, 0])
            D = []
            for i in range(8):
                h = min(1.0, max(0.0, 1.2 / (1 + torch.exp(-V[o, 0, i]).item()) - 0.1))
                level = int(torch.floor(weight[o, i] / step)) + h
                D.append(max(-3.0, min(3.0, level)) * step - float(weight[o, i]))
                total += 0.3 * unit * (1 - abs(2 * h - 1) ** 20)
            total += sum(D[i] * float(H[i, j]) * D[j] for i, j in itertools.product(range(8), repeat=2))
        return total

    moved = learn(groups, grid, H, config) - first
    for o, i in ((0, 0), (0, 5), (1, 2), (1, 7)):
        ahead, behind = first.clone(), first.clone()
        ahead[o, 0, i] += 1e-5
        behind[o, 0, i] -= 1e-5
        slope = loss(ahead) - loss(behind)
        assert float(moved[o, 0, i]) == pytest.approx(-0.01 if slope > 0 else 0.01 if slope < 0 else 0.0, abs=1e-5)


def test_each_weight_goes_up_or_down_and_the_error_falls(generator):
    weight, H = torch.randn(8, 16, generator=generator), moments(generator)
    config = Config(bits=3, group_size=0, steps=300)
    found = encode(weight, H, config)
    plain = nearest(weight, 3, 0, True)
    step = found.scale.float()
    back = found.weight().dequantised(torch.float32)
    inside = weight.abs() <= 3 * step
    assert bool(((back - weight).abs() <= step * (1 + 1e-5))[inside].all())
    errors = [output_error(coded.weight().dequantised(torch.float64) - weight.double(), H) for coded in (found, plain)]
    assert errors[0] < 0.7 * errors[1]


def test_a_group_of_next_to_nothing_leaves_its_row_alone(generator):
    """Its numbers are below what a bfloat16 scale can be; they turn 0, and the rest of the row is learned."""
    weight, H = torch.randn(2, 16, generator=generator), moments(generator)
    weight[0, :8] = 0
    config = Config(bits=3, group_size=8, steps=100)
    wanted = encode(weight, H, config).weight().dequantised(torch.float32)
    weight[0, :8] = 1e-42
    found = encode(weight, H, config)
    assert bool((found.scale > 0).all())
    assert torch.equal(found.weight().dequantised(torch.float32), wanted)


def test_experts_are_learned_one_by_one(generator):
    weight = torch.randn(2, 4, 8, generator=generator)
    own = torch.stack([moments(generator, 8), moments(generator, 8)])
    config = Config(group_size=8, steps=20)
    both = encode_all(weight, own, config)
    for e in range(2):
        assert torch.equal(both.codes[e], encode(weight[e], own[e], config).codes)


def test_refusals():
    with pytest.raises(ValueError, match="warm_up is 1; expected 0 to below 1"):
        Config(warm_up=1)
    with pytest.raises(ValueError, match="lr"):
        Config(lr=0.0, tokens=8)
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
