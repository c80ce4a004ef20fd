"""Binary operators beside loops; counts of bits beside products of signs."""

import math

import pytest
import torch

from mixwell.precision.training.binary import OPERATORS, Binary, Config, by_bits, revived
from tests.contracts._tools import fresh

N, D, M = 5, 6, 3


def given(seed=1):
    g = fresh(seed)
    x, weight, dy = (torch.randn(shape, generator=g) for shape in ((N, D), (M, D), (N, M)))
    x[0, 0] = weight[0, 0] = 0.0
    return x, weight, dy


def s(value):
    return 1.0 if value >= 0 else -1.0


def mean(values):
    return sum(values) / len(values)


SLOPES = {
    "clip": lambda v: float(abs(v) <= 1), "straight": lambda v: 1.0,
    "quadratic": lambda v: max(0.0, 2 - 2 * abs(v)),
    "fourier": lambda v: 0.4 / math.pi * sum(math.cos((2 * i + 1) * 0.1 * v) for i in range(10)),
}
#        weights' mean off, row scale, token scale, slope of inputs, of weights
LOOPS = {"bnn": (False, False, False, "clip", "clip"), "dorefa": (False, True, False, "clip", "straight"),
         "xnor": (True, True, True, "clip", "straight"), "xnor_pp": (False, False, False, "clip", "straight"),
         "bi_real": (False, True, False, "quadratic", "straight"),
         "react": (False, True, False, "quadratic", "straight"), "fda": (False, True, False, "fourier", "straight")}


@pytest.mark.parametrize("operator", LOOPS)
def test_forward_and_gradients_against_a_loop(operator):
    centred, rows, tokens, of_x, of_w = LOOPS[operator]
    x, weight, dy = given()
    module = Binary((M, D), Config(operator=operator), fresh())
    y = module(x.requires_grad_(), weight.requires_grad_())
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    X, W, G = x.tolist(), weight.tolist(), dy.tolist()
    V = [[value - mean(row) if centred else value for value in row] for row in W]
    a = [mean([abs(value) for value in row]) if rows else 1.0 for row in V]
    b = [mean([abs(value) for value in row]) if tokens else 1.0 for row in X]
    want = [[a[m] * b[n] * sum(s(X[n][d]) * s(V[m][d]) for d in range(D)) for m in range(M)] for n in range(N)]
    torch.testing.assert_close(y, torch.tensor(want))
    want_x = [[sum(G[n][m] * a[m] * b[n] * s(V[m][d]) for m in range(M)) * SLOPES[of_x](X[n][d]) for d in range(D)]
              for n in range(N)]
    torch.testing.assert_close(dx, torch.tensor(want_x), rtol=1e-5, atol=1e-5)
    raw = [[sum(G[n][m] * a[m] * b[n] * s(X[n][d]) for n in range(N)) * SLOPES[of_w](V[m][d]) for d in range(D)]
           for m in range(M)]
    want_w = [[value - (mean(row) if centred else 0.0) for value in row] for row in raw]
    torch.testing.assert_close(dw, torch.tensor(want_w), rtol=1e-5, atol=1e-5)


def test_every_operator_is_tried():
    assert {*LOOPS, "recu"} == set(OPERATORS)


def test_recu_brings_outliers_back_and_scales_by_what_it_learns():
    x, weight, _ = given(3)
    weight[0, 1] = 40.0
    tau = 0.8
    cut = revived(weight, tau)
    row = weight[0].tolist()
    std = math.sqrt(sum((value - mean(row)) ** 2 for value in row) / (D - 1))
    even = [value / (std / (2 * math.sqrt(2)) + 1e-5) for value in row]
    most = -mean([abs(value) for value in even]) * math.log(2 - 2 * tau)
    assert cut[0].tolist() == pytest.approx([min(max(value, -most), most) for value in even], rel=1e-4)
    module = Binary((M, D), Config(operator="recu", tau=tau), fresh(2))
    scale = module.scale.tolist()
    y = module(x, weight)
    centred = weight - weight.mean(-1, keepdim=True)
    want = [[scale[m] * sum(s(u) * s(v) for u, v in zip(x[n].tolist(), centred[m].tolist())) for m in range(M)]
            for n in range(N)]
    torch.testing.assert_close(y, torch.tensor(want))
    assert all(0 <= value < 1 for value in scale)
    wide = (x * 10).requires_grad_()  # all beyond 1, and all within a few spreads
    (slope,) = torch.autograd.grad(module(wide, weight).sum(), wide)
    assert bool(slope.any())
    (still,) = torch.autograd.grad(module.eval()(wide, weight).sum(), wide)
    assert int((still != 0).sum()) < int((slope != 0).sum())
    assert module.train()(x[:0], weight).shape == (0, M)


def test_a_shift_moves_where_the_sign_turns():
    x, weight, _ = given(4)
    module = Binary((M, D), Config(operator="react"), fresh())
    before = module(x, weight)
    with torch.no_grad():
        module.shift.fill_(100.0)
    assert not torch.equal(module(x, weight), before)
    same = module(x * 0, weight)
    torch.testing.assert_close(module(x, weight), same)


@pytest.mark.parametrize("width", [1, 8, 13])
def test_counts_of_bits_are_products_of_signs(width):
    x, weight = torch.randn(4, width, generator=fresh(5)), torch.randn(7, width, generator=fresh(6))
    x[0, 0] = 0.0
    module = Binary((7, width), Config(operator="bnn"), fresh())
    assert torch.equal(by_bits(x, weight).float(), module(x, weight))


def test_refusals():
    with pytest.raises(ValueError, match="operator is 'lut'; expected one of bnn"):
        Config(operator="lut")
    for tau in (0.5, 1.0):
        with pytest.raises(ValueError, match="tau is"):
            Config(tau=tau)
