"""FMPQ: orders and blocks by hand, products by a loop, whole inputs unchanged by the order, fewer bits, refusals."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.kernels.codes import rounded_blocks
from mixwell.kernels.linear import linear
from mixwell.lm.model import LanguageModel
from mixwell.precision._parts import nearest
from mixwell.precision.comet import Config, comet, encode, encode_all, example, laid_out, promises
from tests.contracts._conversions import calibration, whole

DOWN = "layers.0.channel_mixer.down_proj"


def outliers(generator, rows=64, width=64, apart=(3, 20, 41)):
    x = torch.randn(rows, width, generator=generator)
    x[:, list(apart)] *= 20
    return x


def test_outliers_share_the_first_blocks():
    largest = torch.tensor([1.0, 9.0, 2.0, 1.5, 1.2, 1.1, 8.0, 1.3])
    order, bits = laid_out(largest, Config(group_size=2))
    assert order.tolist() == [1, 6, 2, 3, 7, 4, 5, 0] and bits.tolist() == [8, 4, 4, 4]
    order, bits = laid_out(largest, Config(group_size=2, permute=False, low=3, high=6))
    assert order.tolist() == list(range(8)) and bits.tolist() == [6, 3, 3, 6]
    _, bits = laid_out(largest, Config(group_size=2, threshold=1.4))  # 1.25 is the median's neighbour, 1.2 the median
    assert bits.tolist() == [8, 8, 4, 4]


def test_a_product_is_what_integers_in_blocks_give(generator):
    """Codes of inputs and weights as integers, multiplied block by block, scaled after each sum."""
    weight, x = torch.randn(5, 16, generator=generator).double(), outliers(generator, 3, 16, (2, 9)).double()
    coded = encode(weight, x.abs().amax(0), Config(group_size=4))
    found = linear(x, coded.weight())
    order = coded.order.tolist()
    for t in range(3):
        for o in range(5):
            total = 0.0
            for b in range(4):
                columns, levels = order[4 * b : 4 * b + 4], 2 ** (int(coded.block_bits[b]) - 1) - 1
                s = max(abs(float(x[t, j])) for j in columns) / levels
                r = float(coded.scale[o, b])
                p = [int(code) - 8 for code in coded.codes[o, 4 * b : 4 * b + 4]]
                q = [round(float(x[t, j]) / s) for j in columns]
                assert all(abs(own) <= levels for own in q)
                total += s * r * sum(a * c for a, c in zip(q, p))
            assert float(found[t, o]) == pytest.approx(total, rel=1e-9, abs=1e-9)


def test_the_order_alone_changes_no_number(generator):
    """Rows rounded as one group: sorted or not, the weight is the same; its columns are where they were."""
    weight, x = torch.randn(6, 32, generator=generator), outliers(generator, 8, 32, (3, 20))
    config = Config(group_size=0)
    found = encode(weight, x.abs().amax(0), config).weight().dequantised(torch.float32)
    assert torch.equal(found, nearest(weight, 4, 0, True).weight().dequantised(torch.float32))


def test_a_gradient_passes_straight_through_the_rounding(generator):
    weight, x = torch.randn(5, 16, generator=generator), torch.randn(3, 16, generator=generator, requires_grad=True)
    coded = encode(weight, x.detach().abs().amax(0), Config(group_size=4)).weight()
    linear(x, coded).sum().backward()
    torch.testing.assert_close(x.grad, coded.dequantised(torch.float32).sum(0).expand(3, -1))


def test_sorted_blocks_beat_all_four_bits_and_need_fewer_of_eight(generator):
    weight, x = torch.randn(64, 256, generator=generator), outliers(generator, 128, 256, range(0, 256, 33))
    y = x @ weight.T
    errors, shares = {}, {}
    for name, config in {"sorted": Config(group_size=32), "as they come": Config(group_size=32, permute=False),
                         "four": Config(group_size=32, high=4), "eight": Config(group_size=32, low=8)}.items():
        coded = encode(weight, x.abs().amax(0), config)
        inputs = coded.weight().inputs(x)
        errors[name] = float((inputs @ weight.T - y).square().sum() / y.square().sum())
        shares[name] = float((coded.block_bits == 4).double().mean())
    assert shares == {"sorted": 7 / 8, "as they come": 0, "four": 1, "eight": 0}
    assert errors["eight"] <= errors["as they come"] < errors["sorted"] < 0.2 * errors["four"]


def test_blocks_are_rounded_each_by_itself(generator):
    x = torch.randn(3, 12, generator=generator)
    found = rounded_blocks(x, torch.tensor([4, 8, 2]))
    for b, bits in enumerate((4, 8, 2)):
        part, levels = x[:, 4 * b : 4 * b + 4], 2 ** (bits - 1) - 1
        step = part.abs().amax(1, keepdim=True) / levels
        torch.testing.assert_close(found[:, 4 * b : 4 * b + 4], (part / step).round() * step)


def test_experts_have_orders_of_their_own_and_a_damaged_one_is_refused(generator):
    stack, largest = torch.randn(3, 4, 16, generator=generator), torch.rand(3, 16, generator=generator)
    both = encode_all(stack, largest, Config(group_size=8))
    for e in range(3):
        own = encode(stack[e], largest[e], Config(group_size=8))
        assert torch.equal(both.order[e], own.order) and torch.equal(both.codes[e], own.codes)
        assert torch.equal(both.weight()[e].dequantised(torch.float32), own.weight().dequantised(torch.float32))
    source = whole(example(generator)["checkpoint"])
    config = Config(group_size=8, bits=5, tokens=72, max_kl_nats=0.5)
    done = comet(source, config, generator, calibration())
    told = done.lineage[-1]["blocks_with_few_bits"]
    few = done.tensors[f"{DOWN}.block_bits"] == 4
    assert told[DOWN] == pytest.approx(float(few.double().mean())) and promises(config) == {"kl_nats": 0.5}
    order = done.tensors[f"{DOWN}.order"].clone()
    order[0, 0] = order[0, 1]
    bits = torch.ones_like(done.tensors[f"{DOWN}.block_bits"])
    for name, damaged, message in ((f"{DOWN}.order", order, "does not name every column once"),
                                   (f"{DOWN}.block_bits", bits, "expected 2 to 8")):
        with pytest.raises(MixwellError, match=message):
            LanguageModel.from_checkpoint(done.derive(tensors={**done.tensors, name: damaged}))


def test_refusals(generator):
    with pytest.raises(ValueError, match="low is 6 and high is 4"):
        Config(low=6, high=4)
    with pytest.raises(MixwellError, match="group_size 12 does not divide"):
        comet(whole(example(generator)["checkpoint"]), Config(group_size=12, tokens=72), generator, calibration())
