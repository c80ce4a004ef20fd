"""MixPE: the product that numbers dequantised before give, every code by shifts, counts, refusals."""

import pytest
import torch

from mixwell.precision._parts import nearest
from mixwell.precision.activations.post_group import (
    Config,
    bit_planes,
    counts,
    integers_of,
    multiplied_sums,
    post_group,
    shifted_sums,
)


@pytest.mark.parametrize("shift_add", [True, False])
@pytest.mark.parametrize(("symmetric", "bits", "size"), [(True, 4, 8), (False, 4, 8), (True, 8, 0), (False, 3, 16)])
def test_as_if_weights_were_dequantised_before(generator, shift_add, symmetric, bits, size):
    x, weight = torch.randn(5, 32, generator=generator), torch.randn(7, 32, generator=generator) + 0.3
    config = Config(bits=bits, group_size=size, symmetric=symmetric, input_bits=8, shift_add=shift_add)
    found = post_group(x, weight, config)
    plain = nearest(weight, bits, size, symmetric).weight().dequantised(torch.float64)
    most = x.double().abs().amax(1, keepdim=True) / 127
    torch.testing.assert_close(found.values, (x.double() / most).round() * most @ plain.T, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.exact, x.double() @ weight.double().T)
    assert found.bits == weight.numel() * (bits + (16 if symmetric else 40) / (size or 32))


@pytest.mark.parametrize("signed", [True, False])
def test_every_code_times_every_input_by_shifts(signed):
    codes = (torch.arange(16) - (8 if signed else 0)).int()
    x = torch.arange(-127, 128).int()
    found = shifted_sums(codes[:, None], x[:, None], 4, signed)
    for t in range(255):
        for o in range(16):
            assert int(found[t, o]) == int(x[t]) * int(codes[o])
    assert torch.equal(found, multiplied_sums(codes[:, None], x[:, None]))


def test_planes_are_twos_complement():
    assert bit_planes(torch.tensor([-8, -1, 5], dtype=torch.int32), 4).T.tolist() == [
        [0, 0, 0, 1], [1, 1, 1, 1], [1, 0, 1, 0]]


def test_inputs_become_integers_token_by_token(generator):
    x = torch.randn(3, 8, generator=generator)
    x[1] = 0
    codes, scale = integers_of(x, 6)
    for row, own, step in zip(x.tolist(), codes.tolist(), scale.flatten().tolist()):
        largest = max(abs(v) for v in row)
        assert step == pytest.approx(largest / 31 if largest else 1)
        assert own == [round(v / step) for v in row]


def test_scales_are_multiplied_once_a_group():
    plain, zeros = Config(group_size=64), Config(group_size=64, symmetric=False, shift_add=False)
    assert counts(3, 10, 128, plain) == {"multiplications": 60, "shifts": 4 * 3840, "before": 1280 + 3840}
    assert counts(3, 10, 128, zeros) == {"multiplications": 120 + 3840, "shifts": 0, "before": 1280 + 3840}
    assert counts(1, 10, 128, Config(group_size=0))["multiplications"] == 10


def test_refusals():
    with pytest.raises(ValueError, match="input_bits is 0; expected 2 to 8"):
        Config(input_bits=0)
    with pytest.raises(ValueError, match="group_size 5 does not divide rows of 16"):
        post_group(torch.ones(1, 16), torch.ones(2, 16), Config(group_size=5))
