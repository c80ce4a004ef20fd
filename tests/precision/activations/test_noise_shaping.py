"""Noise shaping: bits and rests by a loop, rests that stay small, errors that telescope, kernels closer than signs."""

import math

import pytest
import torch

from mixwell.precision.activations.noise_shaping import (
    Config,
    bits_of,
    condensed,
    drawn,
    kernel,
    noise_shaping,
    shaped,
    waves,
    window,
)
from tests.contracts._tools import fresh


def loop(z, config):
    bits, rests = [], []
    for i, value in enumerate(z):
        last = rests[-1] if rests else 0.0
        v = {"first": value + last,
             "second": value + 7 / 6 * last - 1 / 6 * (rests[i - 7] if i >= 7 else 0.0),
             "beta": value + config.beta * (last if i % config.block else 0.0),
             "sign": value}[config.scheme]
        bits.append(1.0 if v >= 0 else -1.0)
        rests.append(v - bits[-1])
    return bits, rests


@pytest.mark.parametrize("scheme", ["first", "second", "beta", "sign"])
def test_bits_and_rests_by_a_loop(generator, scheme):
    config = Config(features=4, block=5, scheme=scheme, beta=1.05)
    z = torch.cos(torch.randn(3, 20, generator=generator, dtype=torch.float64))
    z[0, 0] = 0
    q, u = shaped(z, config)
    for row, own, rests in zip(z.tolist(), q.tolist(), u.tolist()):
        bits, wanted = loop(row, config)
        assert own == bits and rests == pytest.approx(wanted, abs=1e-12)
    numbers = condensed(q, config)
    v = {"first": [1] * 5, "sign": [1] * 5, "second": [1, 2, 3, 2, 1],
         "beta": [1.05**-j for j in range(1, 6)]}[scheme]
    size = math.sqrt(sum(a * a for a in v))
    for n in range(3):
        for p in range(4):
            total = sum(a * float(q[n, 5 * p + j]) for j, a in enumerate(v))
            assert float(numbers[n, p]) == pytest.approx(math.sqrt(2 / 4) * total / size)


def test_rests_stay_small_and_blocks_telescope(generator):
    z = torch.cos(torch.randn(6, 900, generator=generator, dtype=torch.float64) * 3)
    for scheme, most in (("first", 1.0), ("beta", 1.2)):
        q, u = shaped(z, Config(features=60, block=15, scheme=scheme))
        assert float(u.abs().max()) <= most * (1.5 if scheme == "beta" else 1)
    q, u = shaped(z, Config(features=60, block=15))
    sums = (z - q).unflatten(1, (60, 15)).sum(-1)  # what a block's bits miss is what it hands on less what it got
    ends = u[:, 14::15]
    torch.testing.assert_close(sums, ends - torch.cat([torch.zeros(6, 1), ends[:, :-1]], 1))


def test_the_wider_the_block_the_closer_to_unrounded_features(generator):
    x = torch.rand(30, 3, generator=generator)
    errors = {}
    for block in (7, 63):
        for scheme in ("first", "second", "sign"):
            config = Config(features=48, block=block, scheme=scheme)
            z = waves(x, *drawn(3, config, fresh(1)))
            ours, theirs = condensed(shaped(z, config)[0], config), condensed(z, config)
            errors[scheme, block] = float((ours @ ours.T - theirs @ theirs.T).abs().max())
    assert errors["first", 63] < 0.4 * errors["first", 7] and errors["second", 63] < 0.1 * errors["second", 7]
    assert errors["sign", 63] > 0.5 * errors["sign", 7] and errors["second", 63] < errors["first", 63]


def test_the_mean_of_unrounded_condensed_features_is_the_kernel(generator):
    x = torch.rand(4, 2, generator=generator)
    for scheme in ("first", "second", "beta"):
        config = Config(features=4000, block=5, scheme=scheme, width=0.7)
        numbers = condensed(waves(x, *drawn(2, config, fresh(2))), config)
        torch.testing.assert_close(numbers @ numbers.T, kernel(x, x, 0.7), atol=0.08, rtol=0)
    for a in range(4):
        distance = float((x[0] - x[a]).double().square().sum())
        assert float(kernel(x, x, 0.7)[0, a]) == pytest.approx(math.exp(-distance / (2 * 0.49)), abs=1e-6)


def test_bits_are_counted_by_values_of_a_sum():
    for scheme, block, values in (("first", 7, 8), ("sign", 7, 8), ("second", 7, 17), ("beta", 7, 128)):
        config = Config(features=10, block=block, scheme=scheme)
        q = torch.tensor([[1.0 if number >> place & 1 else -1.0 for place in range(7)] for number in range(128)])
        sums = (q.double() @ window(config)).mul(1e9).round().unique()
        assert len(sums) == values and bits_of(3, config) == pytest.approx(30 * math.log2(values))


def test_refusals(generator):
    with pytest.raises(ValueError, match="block is 4; the second order takes odd ones"):
        Config(block=4, scheme="second")
    with pytest.raises(ValueError, match="scheme is 'third'; expected first, second"):
        Config(scheme="third")
    with pytest.raises(ValueError, match=r"beta is 2\.5"):
        Config(beta=2.5)
    with pytest.raises(ValueError, match="rows of 2 and of 3; expected one width"):
        noise_shaping(torch.ones(1, 2), torch.ones(1, 3), Config(), generator)
