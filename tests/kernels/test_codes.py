"""Packed codes: every width comes back, mixed rows and stacks are what a loop says, inputs are rounded, refusals."""

import pytest
import torch

from mixwell.kernels.codes import (
    coded,
    joined_codes,
    pack_codes,
    plain_weight,
    real_scale,
    rounded_inputs,
    unpack_codes,
)
from mixwell.kernels.linear import linear


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_come_back_in_their_bytes(generator, bits):
    codes = torch.randint(0, 2**bits, (3, 5, 24), generator=generator, dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (3, 5, 3 * bits)
    assert torch.equal(unpack_codes(packed, bits), codes)


def test_layout_is_the_one_that_is_documented():
    codes = torch.arange(8, dtype=torch.uint8)[None]  # three bits: a plane of two bits, then one of one
    two = [(j % 4) | ((j + 2) % 4) << 2 | ((j + 4) % 4) << 4 | ((j + 6) % 4) << 6 for j in range(2)]
    one = sum((value >> 2) << place for place, value in enumerate(range(8)))
    assert pack_codes(codes, 3).tolist() == [[*two, one]]
    with pytest.raises(ValueError, match="rows of 6 codes; expected a multiple of 8"):
        pack_codes(torch.zeros(1, 6, dtype=torch.uint8), 3)


def mixed(generator, experts=3):
    bits = torch.tensor([4, 2, 8, 3]).repeat(experts, 1).to(torch.uint8)
    bits[0] = 5
    codes = torch.randint(0, 256, (experts, 4, 16), generator=generator, dtype=torch.uint8)
    codes = codes % (2 ** bits.int()).unsqueeze(-1)
    scale = torch.rand(experts, 4, 2, generator=generator)
    zero = torch.randint(0, 4, (experts, 4, 2), generator=generator, dtype=torch.uint8)
    return codes.to(torch.uint8), bits, scale, zero


def test_rows_of_several_widths_are_what_a_loop_says(generator):
    codes, bits, scale, zero = mixed(generator)
    packed = joined_codes(codes, bits)
    assert packed.numel() * 8 == int(bits.sum()) * 16
    whole = coded(packed, {"bits": bits, "scale": scale, "zero": zero}).dequantised(torch.float64)
    for e in range(3):
        for o in range(4):
            for i in range(16):
                wanted = float(scale[e, o, i // 8]) * (int(codes[e, o, i]) - int(zero[e, o, i // 8]))
                assert abs(float(whole[e, o, i]) - wanted) < 1e-12
    middle = coded(packed, {"bits": bits, "scale": scale}).dequantised(torch.float64)
    assert float(middle[1, 1, 9]) == float(scale[1, 1, 1]) * (int(codes[1, 1, 9]) - 2)
    stored = {"w": packed, "w.bits": bits, "w.scale": scale, "w.zero": zero}
    assert torch.equal(plain_weight(stored, "w", torch.float64), whole)
    assert torch.equal(plain_weight({"v": scale}, "v"), scale)


def test_products_and_their_gradient_are_those_of_the_plain_weight(generator):
    codes, bits, scale, zero = mixed(generator, 1)
    weight = coded(joined_codes(codes[0], bits[0]), {"bits": bits[0], "scale": scale[0], "zero": zero[0]})
    x = torch.randn(5, 16, generator=generator, requires_grad=True)
    y = linear(x, weight)
    torch.testing.assert_close(y, x @ weight.dequantised(torch.float32).T)
    y.sum().backward()
    torch.testing.assert_close(x.grad, weight.dequantised(torch.float32).sum(0).expand(5, -1))


def test_inputs_are_rounded_token_by_token(generator):
    x = torch.randn(4, 8, generator=generator)
    x[3] = 0
    rounded = rounded_inputs(x, 4)
    for row, own in zip(x.tolist(), rounded.tolist()):
        step = max(abs(v) for v in row) / 7
        assert own == pytest.approx([round(v / step) * step if step else 0.0 for v in row], abs=1e-6)
    bits = torch.full((2,), 4, dtype=torch.uint8)
    parts = {"bits": bits, "scale": torch.ones(2, 1), "input_bits": torch.tensor([4], dtype=torch.uint8)}
    codes = torch.randint(0, 16, (2, 8), generator=generator, dtype=torch.uint8)
    weight = coded(joined_codes(codes, bits), parts)
    torch.testing.assert_close(weight.linear(x), rounded @ (codes.float() - 8).T)
    x.requires_grad_()
    linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad[0], (codes.float() - 8).sum(0))


def test_exponents_are_powers_of_two():
    scale = torch.tensor([0, 1, 126, 127, 128, 254], dtype=torch.uint8)
    assert real_scale(scale).tolist() == [2.0**-127, 2.0**-126, 0.5, 1.0, 2.0, 2.0**127]
