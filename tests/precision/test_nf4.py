"""NF4: its table from normal quantiles, codes by a loop, better than equal steps on normal weights."""

import pytest
import torch
from scipy.stats import norm

from mixwell.precision import integers
from mixwell.precision._parts import whole_example
from mixwell.precision.nf4 import TABLE, Config, encode, nf4, promises


def test_the_table_is_made_of_normal_quantiles():
    end = 0.9677083
    above = norm.ppf([end + (0.5 - end) * i / 8 for i in range(8)])
    below = -norm.ppf([end + (0.5 - end) * i / 7 for i in range(7)])
    wanted = sorted([*above, 0.0, *below])
    assert pytest.approx([v / max(wanted) for v in wanted], abs=2e-6) == TABLE


def test_codes_against_a_loop(generator):
    weight = torch.randn(3, 32, generator=generator)
    found = encode(weight, Config(group_size=16))
    back = found.weight().dequantised(torch.float64)
    for o in range(3):
        for g in range(2):
            group = weight[o, 16 * g : 16 * g + 16].tolist()
            scale = torch.tensor(max(abs(v) for v in group)).bfloat16().item()
            for i, value in enumerate(group):
                nearest = min(range(16), key=lambda k: abs(value / scale - TABLE[k]))
                assert found.codes[o, 16 * g + i].item() == nearest
                assert abs(back[o, 16 * g + i].item() - scale * TABLE[nearest]) < 1e-6


def test_better_than_equal_steps_on_normal_weights(generator):
    weight = torch.randn(64, 256, generator=generator)
    errors = []
    for coded in (encode(weight, Config()), integers.encode(weight, integers.Config())):
        errors.append(float((coded.weight().dequantised(torch.float32) - weight).square().mean()))
    assert errors[0] < 0.9 * errors[1] and errors[0] == pytest.approx(0.0085, rel=0.1)
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
    with pytest.raises(ValueError, match="group_size is -1"):
        Config(group_size=-1)


@pytest.mark.parametrize("head", [False, True])
def test_the_head_where_asked(generator, head):
    after = nf4(whole_example(generator), Config(group_size=8, head=head), generator).tensors
    assert ("head.weight.bits" in after) == head and "layers.0.channel_mixer.down_proj.table" in after
