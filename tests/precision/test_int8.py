"""Eight-bit weights: half a step of error, idempotence, stated bits, and what stays as it is."""

import pytest
import torch

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.precision._parts import whole_example
from mixwell.precision.int8 import Config, bits_per_weight, dequantise, example, int8, promises, quantise
from mixwell.precision.integers import Config as FewBits
from mixwell.precision.integers import integers


def loop(row):
    largest = max(abs(v) for v in row)
    scale = largest / 127 if largest else 1.0
    return [max(-127, min(127, round(v / scale))) for v in row], scale


def test_agrees_with_a_loop(generator):
    weight = torch.randn(5, 7, generator=generator)
    q, scale = quantise(weight)
    for r, row in enumerate(weight.double().tolist()):
        levels, s = loop(row)
        assert q[r].tolist() == levels and abs(scale[r, 0].item() - s) < 1e-6


@pytest.mark.parametrize("shape", [(4, 9), (3, 4, 9)])
def test_error_is_within_half_a_step(generator, shape):
    weight = torch.randn(shape, generator=generator) * torch.logspace(-6, 6, shape[-2]).unsqueeze(1)
    q, scale = quantise(weight)
    assert ((dequantise(q, scale) - weight).abs() <= scale / 2 * (1 + 1e-5)).all()


def test_idempotent(generator):
    q, scale = quantise(torch.randn(6, 16, generator=generator))
    again, second = quantise(dequantise(q, scale))
    assert torch.equal(q, again)
    torch.testing.assert_close(second, scale)


def test_a_row_of_zeros_stays_zero():
    q, scale = quantise(torch.zeros(2, 3))
    assert (q == 0).all() and (scale == 1).all()


def test_states_its_bits(generator):
    q, scale = quantise(torch.randn(8, 64, generator=generator))
    stored = (q.numel() * 8 + scale.numel() * 32) / q.numel()
    assert stored == bits_per_weight((8, 64)) == 8.5


def test_a_checkpoint_keeps_norms_routers_and_embeddings(generator):
    checkpoint = example(generator)["checkpoint"]
    extra = {"embed.weight": torch.randn(4, 6), "head.weight": torch.randn(4, 6),
             "layers.0.channel_mixer.router.weight": torch.randn(4, 6)}
    checkpoint = Checkpoint(checkpoint.arch, {**checkpoint.tensors, **extra})
    packed = int8(checkpoint, Config(), generator).tensors
    assert packed["layers.0.channel_mixer.down_proj"].dtype == torch.int8
    assert packed["layers.0.channel_mixer.down_proj.scale"].shape == (6, 1)
    for name in ("norm.weight", *extra):
        assert packed[name] is checkpoint.tensors[name]
    assert int8(checkpoint, Config(head=True), generator).tensors["head.weight"].dtype == torch.int8
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}


def test_refuses_twice_and_nothing_to_do(generator):
    values = example(generator)
    packed = int8(**values)
    with pytest.raises(MixwellError, match="eight-bit already"):
        int8(packed, Config(), generator)
    whole = whole_example(generator)
    few = integers(whole, FewBits(group_size=8), generator)
    with pytest.raises(MixwellError, match="gate_up_proj is in few bits already"):
        int8(few, Config(), generator)
    with pytest.raises(MixwellError, match="no weight to quantise"):
        int8(Checkpoint({}, {"norm.weight": torch.ones(3)}), Config(), generator)
    with pytest.raises(ValueError, match="above 0"):
        Config(max_kl_nats=0.0)
