"""DIVISION: what is kept beside loops, exact products, and gradients that are right on average."""

import math

import pytest
import torch
from torch.nn import functional as F

from mixwell.precision.training.dual_activations import Config, DualActivations, conv2d, kept, means, spread
from tests.contracts._tools import fresh


def smooth(rows, height, width, seed=1):
    """Maps whose neighbours are alike."""
    coarse = torch.randn(rows, 2, 3, 3, generator=fresh(seed))
    return F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)


def test_means_of_blocks_the_last_ones_shorter():
    maps = torch.randn(1, 1, 5, 3, generator=fresh(2))
    low = means(maps, 2)
    assert low.shape == (1, 1, 3, 2)
    for i in range(3):
        for j in range(2):
            rows, columns = range(2 * i, min(2 * i + 2, 5)), range(2 * j, min(2 * j + 2, 3))
            part = [maps[0, 0, r, c].item() for r in rows for c in columns]
            assert low[0, 0, i, j].item() == pytest.approx(sum(part) / len(part), rel=1e-5)
    whole = spread(low, 5, 3, 2)
    assert whole.shape == maps.shape and whole[0, 0, 4, 2] == low[0, 0, 2, 1]


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_codes_against_a_loop(bits):
    maps = smooth(2, 6, 5)
    found = kept(maps, Config(block=3, bits=bits, stochastic=False))
    low = found.low.float()
    for b in range(2):
        for c in range(2):
            rest = [[maps[b, c, i, j].item() - low[b, c, i // 3, j // 3].item() for j in range(5)] for i in range(6)]
            flat = [value for row in rest for value in row]
            least = torch.tensor(min(flat)).bfloat16().item()
            step = torch.tensor((max(flat) - least + 2e-6) / (2**bits - 1)).bfloat16().item()
            expected = []
            for place, value in enumerate(flat):
                code = min(max(round((value - least) / step), 0), 2**bits - 1)
                expected.append(low[b, c, place // 5 // 3, place % 5 // 3].item() + code * step + least)
            away = torch.tensor(expected) - found.restored()[b, c].flatten()
            assert int((away.abs() > 1e-4).sum()) <= 1  # a tie in float32 may fall to the other side


def test_bytes_are_counted_and_a_twelfth_of_float32():
    found = kept(smooth(3, 32, 32), Config())
    assert found.size_bytes == 3 * 2 * (32 * 32 * 2 // 8 + 16 * 2 + 2 + 2)
    assert found.size_bytes < smooth(3, 32, 32).numel() * 4 / 12


def test_the_split_is_closer_on_smooth_maps_and_nothing_where_a_map_is_one_block():
    maps = smooth(4, 32, 32)
    errors = [float((kept(maps, Config(block=block, stochastic=False)).restored() - maps).square().mean())
              for block in (0, 8)]
    assert errors[1] < errors[0] / 2
    small = maps[..., :8, :8]
    one, other = (kept(small, Config(block=block, stochastic=False)).restored() for block in (0, 8))
    torch.testing.assert_close(one, other, rtol=0, atol=0.05)


def test_rounding_by_chance_is_right_on_average():
    maps = smooth(1, 8, 8)
    many = maps.expand(400, -1, -1, -1)
    found = kept(many, Config(block=4), fresh(3)).restored().mean(0)
    near = kept(maps, Config(block=4, stochastic=False)).restored()[0]
    assert float((found - maps[0]).abs().mean()) < float((near - maps[0]).abs().mean()) / 2


def test_a_product_is_exact_but_for_the_weights_gradient():
    x, weight = torch.randn(2, 9, 4, generator=fresh(4)), torch.randn(3, 4, generator=fresh(5))
    dy = torch.randn(2, 9, 3, generator=fresh(6))
    module = DualActivations((3, 4), Config(block=3, stochastic=False), fresh())
    y = module(x.requires_grad_(), weight.requires_grad_())
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    assert torch.equal(y, F.linear(x, weight)) and torch.allclose(dx, dy @ weight)
    maps = x.detach().transpose(1, 2).unsqueeze(2)
    seen = kept(maps, Config(block=3, stochastic=False)).restored().squeeze(2).transpose(1, 2)
    expected = [[math.fsum(dy[b, t, m].item() * seen[b, t, d].item() for b in range(2) for t in range(9))
                 for d in range(4)] for m in range(3)]
    torch.testing.assert_close(dw, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(dw, dy.reshape(-1, 3).T @ x.detach().reshape(-1, 4), rtol=1e-3)


def test_a_convolution_is_exact_but_for_the_weights_gradient():
    x, weight = smooth(2, 12, 12), torch.randn(4, 2, 3, 3, generator=fresh(7))
    config = Config(block=4, bits=8, stochastic=False)
    y = conv2d(x.requires_grad_(), weight.requires_grad_(), config, fresh(), stride=2, padding=1)
    dy = torch.randn(y.shape, generator=fresh(8))
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    want = F.conv2d(x, weight, None, 2, 1)
    want_x, want_w = torch.autograd.grad(want, (x, weight), dy)
    assert torch.equal(y, want)
    torch.testing.assert_close(dx, want_x, rtol=1e-4, atol=1e-5)
    assert float((dw - want_w).norm() / want_w.norm()) < 0.02
    assert not torch.equal(dw, want_w)


def test_a_pass_without_gradients_draws_nothing():
    module, x = DualActivations((3, 4), Config(block=3), fresh()), torch.randn(9, 4, generator=fresh(4))
    before = module.generator.get_state()
    with torch.no_grad():
        module(x, torch.ones(3, 4))
    assert torch.equal(module.generator.get_state(), before)
    module(x, torch.ones(3, 4, requires_grad=True))
    assert not torch.equal(module.generator.get_state(), before)


def test_refusals():
    with pytest.raises(ValueError, match="bits is 9; expected at most 8"):
        Config(bits=9)
    with pytest.raises(ValueError, match="block is -1; expected at least 0"):
        Config(block=-1)
