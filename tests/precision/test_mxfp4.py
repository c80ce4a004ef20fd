"""MXFP4: exponents and elements by a loop, both rules, powers of two exact, no negative zero."""

import math

import pytest
import torch

from mixwell.kernels.codes import real_scale
from mixwell.precision._parts import whole_example
from mixwell.precision.mxfp4 import MAGNITUDES, Config, encode, mxfp4, promises


def loop(group, rule):
    largest = max(abs(v) for v in group)
    exponent = math.floor(math.log2(largest)) - 2 if rule == "floor" else math.ceil(math.log2(largest / 6))
    found = []
    for value in group:
        size = min(MAGNITUDES, key=lambda m: abs(abs(value) / 2.0**exponent - m))
        found.append(math.copysign(size, value) * 2.0**exponent)
    return exponent, found


@pytest.mark.parametrize("rule", ["floor", "ceil"])
def test_against_a_loop(generator, rule):
    weight = torch.randn(6, 32, generator=generator) * torch.logspace(-8, 8, 6)[:, None]
    found = encode(weight, Config(group_size=16, rule=rule))
    back = found.weight().dequantised(torch.float64)
    for o in range(6):
        for g in range(2):
            exponent, values = loop(weight[o, 16 * g : 16 * g + 16].tolist(), rule)
            assert found.scale[o, g].item() == exponent + 127
            assert back[o, 16 * g : 16 * g + 16].tolist() == pytest.approx(values, rel=1e-12)


def test_the_rule_ceil_cuts_a_fifth_at_most_and_floor_a_quarter_at_most(generator):
    weight = torch.randn(64, 32, generator=generator)
    for rule, least in (("floor", 0.75), ("ceil", 0.8)):
        back = encode(weight, Config(rule=rule)).weight().dequantised(torch.float32)
        share = back.abs().amax(1) / weight.abs().amax(1)
        assert float(share.min()) >= least - 1e-6
    edge = torch.tensor([[6.0] * 8, [6.1] * 8, [8.0] * 8])
    assert encode(edge, Config(group_size=8, rule="ceil")).scale.flatten().tolist() == [127, 128, 128]
    assert encode(edge, Config(group_size=8)).scale.flatten().tolist() == [127, 127, 128]


def test_ties_are_smaller_and_zero_has_no_sign():
    values = torch.tensor([[4.0, 5.0, -5.0, 0.25, -0.25, -0.75, 0.0, 2.5]])
    found = encode(values, Config(group_size=8))
    assert found.weight().dequantised(torch.float32).tolist() == [[4.0, 4.0, -4.0, 0.0, 0.0, -0.5, 0.0, 2.0]]
    assert found.codes[0, 4].item() == 0
    assert real_scale(found.scale).item() == 1.0
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
    with pytest.raises(ValueError, match="group_size is -1"):
        Config(group_size=-1)


@pytest.mark.parametrize("head", [False, True])
def test_the_head_where_asked(generator, head):
    after = mxfp4(whole_example(generator), Config(group_size=8, head=head), generator).tensors
    assert ("head.weight.bits" in after) == head and "layers.0.channel_mixer.down_proj.table" in after
