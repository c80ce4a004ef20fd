"""BCT: shifts and blocks by a loop, other tensors rounded, less error the smaller the blocks, the record, refusals."""

import pytest
import torch

from mixwell.precision._parts import whole_example
from mixwell.precision.blockwise import Config, blockwise, encode, exponents, promises, rounded_runs


def shift(largest, bits):
    """The largest shift at which it fits, by trying."""
    return max(s for s in range(-20, 40) if largest * 2.0**s <= 2 ** (bits - 1) - 1)


@pytest.mark.parametrize(("rows", "size"), [(2, 8), (0, 0), (3, 4), (1, 16)])
def test_codes_against_a_loop(generator, rows, size):
    weight = torch.randn(2, 5, 16, generator=generator) * torch.tensor([1.0, 40.0])[:, None, None]
    back = encode(weight, Config(rows=rows, group_size=size)).weight().dequantised(torch.float64)
    R, G = rows or 5, size or 16
    for e in range(2):
        for o in range(5):
            for i in range(16):
                block = weight[e, o // R * R : o // R * R + R, i // G * G : i // G * G + G]
                s = shift(float(block.abs().max()), 4)
                assert float(back[e, o, i]) == round(float(weight[e, o, i]) * 2.0**s) * 2.0**-s


def test_a_largest_number_on_the_last_step_stays_there():
    found = exponents(torch.tensor([7.0, 7.001, 3.5, 14.0, 0.0]), 4).int() - 127
    assert found[:4].tolist() == [0, 1, -1, 1]
    assert [shift(v, 4) for v in (7.0, 7.001, 3.5, 14.0)] == [0, -1, 1, -1]


def test_other_tensors_are_rounded_in_runs(generator):
    tensor = torch.randn(3, 7, generator=generator).bfloat16()
    found = rounded_runs(tensor, 8, 6)
    flat, back = tensor.flatten().tolist(), found.flatten().tolist()
    for start in (0, 8, 16):
        s = shift(max(abs(v) for v in flat[start : start + 8]), 6)
        assert back[start : start + 8] == [round(v * 2.0**s) * 2.0**-s for v in flat[start : start + 8]]
    assert found.dtype == torch.bfloat16 and found.shape == tensor.shape
    assert rounded_runs(torch.tensor(0.3), 8, 6) == 0.296875


@pytest.mark.parametrize("other", [0, 8])
def test_nothing_stays_whole_unless_it_is_asked(generator, other):
    source = whole_example(generator)
    done = blockwise(source, Config(group_size=8, rows=4, others=other, input_bits=0), generator)
    assert "head.weight.bits" in done.tensors and not any(name.endswith("input_bits") for name in done.tensors)
    for name in ("embed.weight", "norm.weight", "layers.0.channel_mixer.router.weight"):
        values = done.tensors[name]
        assert values.dtype == torch.float32 and torch.equal(values, source.tensors[name]) == (other == 0)
    told = done.lineage[-1]["blocks"]
    heads = 13 * 16  # four blocks of rows, the last of one row, by two
    numbers = sum(source.tensors[name].numel() for name in done.tensors if f"{name}.bits" in done.tensors)
    blocks = (numbers - heads) / 32 + 8
    assert told == {"bits_per_weight": pytest.approx(4 + 8 * blocks / numbers), "bits_of_other_tensors": other}
    without = blockwise(source, Config(group_size=8, head=False), generator)
    assert "head.weight.bits" not in without.tensors
    assert int(without.tensors["layers.0.channel_mixer.down_proj.input_bits"]) == 8


def test_the_smaller_the_blocks_the_less_error_where_channels_stand_out(generator):
    weight = torch.randn(64, 64, generator=generator)
    weight[:, ::16] *= 30
    errors = []
    for rows, size in ((0, 0), (16, 16), (4, 4), (1, 1)):
        back = encode(weight, Config(rows=rows, group_size=size)).weight().dequantised(torch.float32)
        errors.append(float((back - weight).square().mean()))
    assert errors == sorted(errors, reverse=True) and errors[0] > 2 * errors[2]


def test_refusals():
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
    for wrong in ({"others": 1}, {"bits": 9}, {"rows": -1}, {"input_bits": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Config(**wrong)


def test_a_single_number_is_a_run_of_its_own(generator):
    source = whole_example(generator)
    more = source.derive(tensors={**source.tensors, "layers.0.channel_mixer.router.bias": torch.tensor(0.3)})
    done = blockwise(more, Config(group_size=0), generator)
    assert float(done.tensors["layers.0.channel_mixer.router.bias"]) == 77 / 256
