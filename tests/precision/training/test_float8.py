"""FP8-LM's casts, product, sums and AdamW beside loops in Python's own floats."""

import math

import pytest
import torch

from mixwell.precision.training.float8 import (
    E4M3,
    E5M2,
    HALF,
    Config,
    Float8,
    Float8AdamW,
    adamw,
    rounded,
    scale_of,
    started,
    stored,
    summed,
)
from tests.contracts._tools import fresh

FORMS = {E4M3: (3, -6, 448.0), E5M2: (2, -14, 57344.0), HALF: (10, -14, 65504.0)}  # mantissa, least exponent, largest


def nearest(value, form):
    """The nearest number of a form, ties to even, saturating."""
    mantissa, least, most = FORMS[form]
    if value == 0:
        return 0.0
    exponent = max(math.frexp(abs(value))[1] - 1, least)
    step = 2.0 ** (exponent - mantissa)
    return math.copysign(min(round(abs(value) / step) * step, most), value)


def by_scale(values, form):
    largest = max(map(abs, values))
    scale = 2.0 ** math.floor(math.log2(FORMS[form][2] / largest))
    return [nearest(value * scale, form) / scale for value in values]


def grid(rows, form):
    flat = by_scale([value for row in rows for value in row], form)
    return [flat[i : i + len(rows[0])] for i in range(0, len(flat), len(rows[0]))]


def times(a, b):
    return [[math.fsum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]


@pytest.mark.parametrize("form", [E4M3, E5M2])
def test_the_scale_is_a_power_of_two_under_the_largest(form):
    values = torch.randn(200, generator=fresh(1)) * 3e-5
    scale = float(scale_of(values, form))
    most = FORMS[form][2]
    assert math.log2(scale).is_integer() and most / 2 < float(values.abs().max()) * scale <= most
    assert rounded(values, form).tolist() == pytest.approx(by_scale(values.tolist(), form), rel=1e-6, abs=0)
    for odd in (torch.zeros(3), torch.tensor([1.0, math.inf])):
        assert scale_of(odd, form) == 1


def test_forward_and_both_gradients_against_a_loop():
    g = fresh(3)
    x, weight, dy = (torch.randn(shape, generator=g) * 1e-3 for shape in ((3, 4), (2, 4), (3, 2)))
    y = Float8((2, 4), Config(), g)(x.requires_grad_(), weight.requires_grad_())
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    rx, rw, rd = grid(x.tolist(), E4M3), grid(weight.tolist(), E4M3), grid(dy.tolist(), E5M2)
    expected = times(rx, list(zip(*rw))), times(rd, rw), grid(times(list(zip(*rd)), rx), E4M3)
    for found, wanted in zip((y, dx, dw), expected):
        torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-5, atol=1e-12)


def test_without_scales_small_numbers_are_gone_and_large_ones_saturate():
    small = torch.full((4,), 1e-4)
    assert not rounded(small, E4M3, scaled=False).any() and bool(rounded(small, E4M3).any())
    assert rounded(torch.tensor([1e6]), E5M2, scaled=False).item() == 57344
    x, weight = torch.ones(2, 4), torch.full((3, 4), 1e-4)
    assert not Float8((3, 4), Config(scaled=False), fresh())(x, weight).any()


def test_adamw_against_a_loop_over_three_steps():
    options = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2}
    weights, g = torch.randn(5, generator=fresh(2)), fresh(4)
    kept, master, first, second = started(weights, Config()), by_scale(weights.tolist(), HALF), [0.0] * 5, [0.0] * 5
    for step in range(1, 4):
        grad = torch.randn(5, generator=g) * 1e-3
        kept = adamw(kept, grad, Config(), **options)
        slope = by_scale(grad.tolist(), E4M3)
        m = [0.8 * a + 0.2 * b for a, b in zip(first, slope)]
        v = [0.9 * a + 0.1 * b * b for a, b in zip(second, slope)]
        w = [a * (1 - 0.1 * 0.2) - 0.1 * (x / (1 - 0.8**step)) / (math.sqrt(y / (1 - 0.9**step)) + 1e-6)
             for a, x, y in zip(master, m, v)]
        master, first, second = by_scale(w, HALF), by_scale(m, E4M3), by_scale(v, HALF)
        assert kept.master.plain().tolist() == pytest.approx(master, rel=2e-3)
        assert kept.first.plain().tolist() == pytest.approx(first, rel=0.13, abs=1e-7)
    assert kept.step == 3 and (kept.first.numbers.dtype, kept.second.numbers.dtype) == (E4M3, HALF)


def test_an_optimizer_of_six_bytes_moves_a_parameter_as_adamw_does():
    weight = torch.nn.Parameter(torch.randn(8, 4, generator=fresh(5)))
    twin = torch.nn.Parameter(weight.detach().clone())
    ours = Float8AdamW({"w": weight, "still": torch.nn.Parameter(torch.ones(2))}, Config(), betas=(0.9, 0.95))
    theirs = torch.optim.AdamW([twin], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    for seed in range(4):
        grad = torch.randn(8, 4, generator=fresh(seed))
        weight.grad, twin.grad = grad.clone(), grad.clone()
        ours.step(0.01)
        theirs.step()
    assert weight.grad is None and ours.bytes_per_parameter() == 6
    torch.testing.assert_close(weight, twin, rtol=0, atol=6e-3)


def test_a_second_moment_in_eight_bits_loses_small_squares():
    grad = torch.tensor([1.0, 1e-4])
    options = {"lr": 0.0}
    assert adamw(started(grad, Config()), grad, Config(), **options).second.plain()[1] > 0
    narrow = Config(second="float8")
    assert adamw(started(grad, narrow), grad, narrow, **options).second.plain()[1] == 0


def test_a_sum_over_processes_is_their_mean_in_one_scale():
    parts = [torch.randn(50, generator=fresh(seed)) * 1e-4 for seed in range(4)]
    total = summed(parts)
    mean = torch.stack(parts).mean(0)
    assert total.numbers.dtype == E4M3
    assert float((total.plain() - mean).abs().max()) < float(mean.abs().max()) / 8
    assert torch.equal(summed(parts[:1]).plain(), stored(parts[0], E4M3).plain())


def test_refusal():
    with pytest.raises(ValueError, match="second is 'int8'"):
        Config(second="int8")
