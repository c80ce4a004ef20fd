"""Integers in groups: a loop in Python, half a step, every option, what is refused."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.kernels.codes import unpack_codes
from mixwell.precision.integers import Config, bits_per_weight, encode, example, integers, promises


def symmetric_loop(group, bits):
    """(scale before it is stored, numbers) of one group."""
    top = 2 ** (bits - 1) - 1
    scale = max(abs(v) for v in group) / top or 1.0
    stored = torch.tensor(scale).bfloat16().item()
    return stored, [max(-top, min(top, round(v / stored))) for v in group]


def asymmetric_loop(group, bits):
    low, high = min(0.0, *group), max(0.0, *group)
    scale = (high - low) / (2**bits - 1) or 1.0
    zero = round(-low / scale)
    return scale, zero, [max(0, min(2**bits - 1, round(v / scale) + zero)) for v in group]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [0, 8])
def test_symmetric_against_a_loop(generator, bits, size):
    weight = torch.randn(4, 16, generator=generator)
    found = encode(weight, Config(bits=bits, group_size=size))
    for o in range(4):
        for g in range(16 // (size or 16)):
            part = slice(g * (size or 16), (g + 1) * (size or 16))
            scale, numbers = symmetric_loop(weight[o, part].tolist(), bits)
            assert found.scale[o, g].item() == scale
            assert (found.codes[o, part].int() - 2 ** (bits - 1)).tolist() == numbers


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_asymmetric_against_a_loop(generator, shift):
    weight = torch.randn(4, 16, generator=generator) + shift
    found = encode(weight, Config(symmetric=False, group_size=8))
    for o in range(4):
        for g in range(2):
            scale, zero, codes = asymmetric_loop(weight[o, 8 * g : 8 * g + 8].tolist(), 4)
            assert abs(found.scale[o, g].item() - scale) < 1e-6 and found.zero[o, g].item() == zero
            assert found.codes[o, 8 * g : 8 * g + 8].tolist() == codes


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_error_is_within_half_a_step(generator, bits, symmetric):
    weight = torch.randn(3, 8, 64, generator=generator) * torch.logspace(-6, 6, 8)[:, None]
    coded = encode(weight, Config(bits=bits, group_size=16, symmetric=symmetric))
    step = coded.scale.float().repeat_interleave(16, -1)
    away = (coded.weight().dequantised(torch.float32) - weight).abs()
    assert bool((away <= step / 2 * (1 + 1e-4)).all())


def test_asymmetric_is_better_on_one_sided_weights(generator):
    weight = torch.rand(8, 64, generator=generator) + 0.1
    errors = [float((encode(weight, Config(symmetric=s)).weight().dequantised(torch.float32) - weight).norm())
              for s in (True, False)]
    assert errors[1] < 0.7 * errors[0]
    assert bits_per_weight(Config(group_size=32), 64) == 4.5
    assert bits_per_weight(Config(group_size=0, symmetric=False), 80) == 4.5


def test_eight_bits_for_weights_and_inputs(generator):
    """W8A8 with a scale for each row and token: the product is that of integers."""
    weight, x = torch.randn(5, 32, generator=generator), torch.randn(3, 32, generator=generator)
    config = Config(bits=8, group_size=0, input_bits=8)
    coded = encode(weight, config)
    q = coded.codes.long() - 128
    scale_x = x.abs().amax(1, keepdim=True) / 127
    sums = (x / scale_x).round().long() @ q.T
    wanted = sums.double() * scale_x.double() * coded.scale.double().T
    torch.testing.assert_close(coded.weight().linear(x).double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_keeps_routers_and_head(generator):
    values = example(generator)
    head = torch.randn(8, 16, generator=generator)
    checkpoint = values["checkpoint"].derive(tensors={**values["checkpoint"].tensors, "head.weight": head})
    after = integers(checkpoint, Config(group_size=8), generator).tensors
    assert after["head.weight"] is head
    router = "layers.0.channel_mixer.router.weight"
    assert after[router] is checkpoint.tensors[router]
    whole = integers(checkpoint, Config(group_size=8, head=True), generator).tensors["head.weight"]
    coded = encode(head, Config(group_size=8))
    assert torch.equal(unpack_codes(whole.view(8, 8), 4), coded.codes)
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}


def test_refusals(generator):
    values = example(generator)
    with pytest.raises(MixwellError, match=r"group_size 12 does not divide rows of 16; 8 does, and 0 takes whole rows"):
        integers(values["checkpoint"], Config(group_size=12), generator)
    with pytest.raises(ValueError, match="bits is 9; expected 2 to 8"):
        Config(bits=9)
    with pytest.raises(ValueError, match="group_size is -1"):
        Config(group_size=-1)
    with pytest.raises(ValueError, match="input_bits is 1; expected 2 to 8, or 0"):
        Config(input_bits=1)
