"""bfloat16 emulated on float32: every upper half, ties and specials included, and what its range is good for."""

import math
import struct

import pytest
import torch

from mixwell.precision.training.bfloat16 import Bfloat16, Config, rounded
from tests.contracts._tools import fresh

LOW = (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)


@pytest.fixture(scope="module")
def all_halves():
    upper = torch.arange(2**16, dtype=torch.int64) << 16
    bits = (upper[:, None] + torch.tensor(LOW)).flatten()
    signed = torch.where(bits >= 2**31, bits - 2**32, bits)
    return signed.to(torch.int32).view(torch.float32)


def test_every_upper_half_is_rounded_as_torch_rounds_it(all_halves):
    found, expected = rounded(all_halves), all_halves.to(torch.bfloat16).float()
    nan = expected.isnan()
    assert torch.equal(found.isnan(), nan) and int(nan.sum()) > 1000
    assert torch.equal(found[~nan].view(torch.int32), expected[~nan].view(torch.int32))


def test_truncation_cuts_towards_zero(all_halves):
    sound = all_halves[all_halves.isfinite()]
    found = rounded(sound, "truncate")
    assert bool((found.abs() <= sound.abs()).all()) and bool((found.view(torch.int32) & 0xFFFF == 0).all())


def nearest(value):
    """A Python float to the bfloat16 nearest, ties to even, by its two neighbours."""
    (bits,) = struct.unpack(">I", struct.pack(">f", value))
    below = bits & 0xFFFF0000
    low, high = (struct.unpack(">f", struct.pack(">I", b))[0] for b in (below, below + 0x10000))
    gap = abs(value - low) - abs(high - value)
    return (low if (below >> 16) % 2 == 0 else high) if gap == 0 else (low if gap < 0 else high)


def matrix(rows):
    return [[nearest(value) for value in row] for row in rows]


def times(a, b):
    return [[math.fsum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]


def test_forward_and_both_gradients_against_a_loop():
    g = fresh(3)
    x, weight, dy = (torch.randn(shape, generator=g) for shape in ((3, 4), (2, 4), (3, 2)))
    ours = Bfloat16((2, 4), Config(), g)
    y = ours(x.requires_grad_(), weight.requires_grad_())
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    rx, rw, rd = (matrix(value.tolist()) for value in (x, weight, dy))
    for found, expected in ((y, times(rx, list(zip(*rw)))), (dx, times(rd, rw)), (dw, times(list(zip(*rd)), rx))):
        torch.testing.assert_close(found, torch.tensor(matrix(expected)), rtol=0, atol=0)


def test_small_gradients_stay_where_float16_loses_them():
    tiny = torch.full((5,), 1e-8)
    assert bool((rounded(tiny) > 0.99e-8).all()) and not rounded(tiny, "float16").any()
    assert rounded(torch.tensor(1e5)).isfinite() and rounded(torch.tensor(1e5), "float16").isinf()


def test_a_step_below_a_256th_is_lost_without_a_master():
    weight = torch.tensor(1.0)
    for _ in range(100):
        weight = rounded(weight - 1e-3)
    assert weight == 1.0


def test_refusal():
    with pytest.raises(ValueError, match="rounding is 'stochastic'"):
        Config(rounding="stochastic")
