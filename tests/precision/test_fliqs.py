"""FLIQS: the slope of the policy against autograd, formats against torch's own, searches that end where they must."""

import math
from dataclasses import replace

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.formats.tensors import size_bytes
from mixwell.precision._float_formats import nearest_float, table
from mixwell.precision.fliqs import (
    Config,
    encode,
    entropy_at,
    example,
    fliqs,
    mean_entropy,
    most_probable,
    policy_slope,
    promises,
    reward,
)
from tests.contracts._conversions import calibration, logits, whole

SMALL = {"group_size": 8, "tokens": 72}


@pytest.fixture
def checkpoint(generator):
    return whole(example(generator)["checkpoint"])


def test_the_slope_is_that_of_autograd(generator):
    theta = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    drawn = torch.tensor([2, 0, 1, 1])
    total = 0
    for unit, choice in enumerate(drawn.tolist()):
        pi = theta[unit].softmax(-1)
        total = total + 0.7 * pi[choice].log() - 0.3 * (pi * pi.log()).sum()
    (expected,) = torch.autograd.grad(total, theta)
    torch.testing.assert_close(policy_slope(theta.detach(), drawn, 0.7, 0.3), expected)


def test_rewards_count_cost_on_both_sides():
    config = Config(penalty=2.0)
    assert reward(1.5, 80.0, 100.0, config) == pytest.approx(-1.5 - 0.4)
    assert reward(1.5, 120.0, 100.0, config) == pytest.approx(-1.5 - 0.4)
    assert reward(1.5, 100.0, 100.0, config) == -1.5


def test_entropy_is_first_wanted_and_then_fined():
    config = Config(steps=101, warmup=0.0, entropy=0.5)
    assert entropy_at(0, config) == 0.5 and entropy_at(100, config) == -0.5
    assert entropy_at(50, config) == pytest.approx(0, abs=1e-12)
    late = replace(config, warmup=0.5)
    assert entropy_at(50, late) == 0.5 and entropy_at(100, late) == -0.5


def test_floats_are_those_that_others_know():
    """E4M3 as torch has it, E2M1 as the OCP's formats list it; three bits are powers of two."""
    raw = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert sorted(set(table(8).tolist())) == sorted(set(raw[raw.isfinite()].tolist()))
    assert sorted(set(table(4).tolist())) == [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert sorted(set(table(3).tolist())) == [-4, -2, -1, 0, 1, 2, 4]
    assert all(len(table(bits)) == 2**bits and table(bits).diff().min() >= 0 for bits in range(3, 9))
    assert table(6).max() == 28 and table(5).max() == 7 and table(7).max() == 30
    with pytest.raises(ValueError, match="floats of 2 bits are none; expected 3 to 8"):
        table(2)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_a_float_is_the_nearest_of_its_group(generator, bits):
    weight = torch.randn(3, 16, generator=generator)
    weight[0, :8] = 0
    found = nearest_float(weight, bits, 8).weight().dequantised(torch.float64)
    for row in range(3):
        for group in (slice(0, 8), slice(8, 16)):
            own = weight[row, group]
            scale = float((own.abs().max() / table(bits).max()).to(torch.bfloat16)) or 1.0
            for value, told in zip(own.tolist(), found[row, group].tolist()):
                least = min(abs(value - scale * level) for level in table(bits).tolist())
                assert abs(value - told) == pytest.approx(least, abs=1e-6)


def test_the_most_probable_mix_is_the_argmax_where_it_fits():
    theta = torch.tensor([[3.0, 0, 0], [0, 1, 0], [0, 0, 2]], dtype=torch.float64)
    size = torch.tensor([[2.0, 4, 8]]).expand(3, 3).double()
    assert most_probable(theta, size, 14.0) == [0, 1, 2]
    tight = most_probable(theta, size, 12.0)  # 2 nats to give up the third, 1 the second
    assert tight == [0, 0, 2]
    assert mean_entropy(torch.zeros(2, 4)) == pytest.approx(math.log(4))
    assert mean_entropy(torch.tensor([[50.0, 0], [0, 50]])) < 1e-9


class Planted:
    """Text on which only one matrix counts: its squared error is the loss."""

    def __init__(self, checkpoint, place):
        self.name, self.expert = place
        self.truth = checkpoint.tensors[self.name][self.expert]
        self.batches = [torch.zeros(2, 3, dtype=torch.int64)]

    def logits(self, checkpoint, tokens, moved):
        error = (moved[self.name][self.expert] - self.truth).square().mean()
        rest = sum(value.sum() * 0 for value in moved.values())
        both = torch.stack([-8 * error + rest, 0 * error])
        return both.expand(*tokens.shape, 2)

    def routed(self, checkpoint):
        return {}


def test_the_policy_finds_the_matrix_that_counts_and_settles(checkpoint):
    """The promise of the paper: one search, a mix at its target, a policy that is sure of it."""
    place = ("layers.0.channel_mixer.down_proj", 1)
    config = Config(widths=(2, 8), bits_per_weight=4.0, steps=200, lr=0.0, policy_lr=0.2, penalty=1.0, entropy=0.1,
                    warmup=0.05, memory=0.9, rows=2, kind="integer", **SMALL)
    after = fliqs(checkpoint, config, torch.Generator().manual_seed(0), Planted(checkpoint, place))
    told = after.lineage[-1]
    assert told["bits"][place[0]][1] == 8
    assert told["policy"]["entropy_nats"] < 0.1
    sizes = [(width, checkpoint.tensors[name].numel() / len(own)) for name, own in told["bits"].items()
             for width in own]
    mean = sum(width * count for width, count in sizes) / sum(count for _, count in sizes)
    assert 3.5 < mean <= 4.0


def test_weights_train_at_the_formats_drawn(checkpoint):
    """One width, no policy: the loss at two bits falls, and a rate of 0 leaves the weights where rounding puts them."""
    text = calibration()
    fixed = Config(widths=(2,), bits_per_weight=2, steps=12, lr=0.0, **SMALL)
    still = fliqs(checkpoint, fixed, torch.Generator().manual_seed(0), text)
    name = "layers.0.sequence_mixer.out.weight"
    rounded = encode(checkpoint.tensors[name], 2, fixed).stored(name)
    assert torch.equal(still.tensors[name], rounded[name])
    moving = fliqs(checkpoint, replace(fixed, lr=1e-2), torch.Generator().manual_seed(0), text)
    assert nats(moving, text) < nats(still, text) - 0.01


def nats(checkpoint, text):
    tokens = torch.cat(list(text.batches))
    shares = logits(checkpoint, tokens)[:, :-1].log_softmax(-1)
    return float(-shares.gather(-1, tokens[:, 1:, None]).mean())


def test_floats_are_kept_under_bytes(checkpoint):
    config = Config(kind="float", widths=(3, 6, 8), steps=2, max_bytes=11500, rows=4, warmup=0.9, **SMALL)
    after = fliqs(checkpoint, config, torch.Generator().manual_seed(0), calibration())
    assert size_bytes(after.tensors) <= 11500
    own = after.tensors["layers.0.channel_mixer.down_proj.table"]
    assert own.shape[0] == 3 and own.shape[1] in (8, 64, 256)
    with pytest.raises(MixwellError, match="max_bytes: the budget is"):
        fliqs(checkpoint, replace(config, max_bytes=3500), torch.Generator(), calibration())


def test_refusals():
    for options, message in (({"steps": 0}, "steps is 0"), ({"warmup": 1.0}, "warmup is 1.0 and memory 0.9; expected"),
                             ({"kind": "float"}, r"widths is \(2, 3, 4, 8\); floats have 3 bits at least"),
                             ({"policy_lr": 0}, "policy_lr is 0"), ({"entropy": -1}, "entropy is -1")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
