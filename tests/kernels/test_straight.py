"""Products straight from codes are what a loop over numbers says, for every width, part and number of rows."""

import copy
import dataclasses
import itertools

import pytest
import torch

from mixwell.kernels import straight
from mixwell.kernels.codes import coded, joined_codes
from mixwell.kernels.experts import expert_mlp, one_token_mlp

loops = pytest.importorskip("mixwell.kernels.loops")

WIDTH, ROWS = 128, 5


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """The loops serve up to eight rows, whatever this machine finds quicker."""
    monkeypatch.setattr(straight, "most_rows", lambda dtype: 8)


def numbers(codes, scale, zero, table, bits, order=None):
    """The weight [O, I] that codes stand for, number by number."""
    outputs, width = codes.shape
    group = width // scale.shape[1]
    whole = [[0.0] * width for _ in range(outputs)]
    for o, i in itertools.product(range(outputs), range(width)):
        code = int(codes[o, i])
        middle = 2 ** (int(bits[o]) - 1) if zero is None else int(zero[o, i // group])
        level = code - middle if table is None else float(table[code])
        column = i if order is None else int(order[i])
        whole[o][column] = float(scale[o, i // group]) * level
    return torch.tensor(whole, dtype=torch.float64)


def drawn(generator, bits, groups=4, kind=torch.bfloat16, zero=False, table=False, outputs=ROWS):
    """Codes, their parts, and the coded weight."""
    bits_O = torch.as_tensor(bits, dtype=torch.uint8).expand(outputs).contiguous()
    codes = torch.randint(0, 256, (outputs, WIDTH), generator=generator) % (2 ** bits_O.int()).unsqueeze(1)
    parts = {"bits": bits_O, "scale": torch.rand(outputs, groups, generator=generator).add(0.1)}
    if kind == torch.uint8:
        parts["scale"] = torch.randint(120, 130, (outputs, groups), generator=generator)
    parts["scale"] = parts["scale"].to(kind)
    if zero:
        parts["zero"] = torch.randint(0, 2 ** int(bits_O.min()), (outputs, groups), generator=generator).byte()
    if table:
        parts["table"] = torch.randn(2 ** int(bits_O.max()), generator=generator)
    return codes.byte(), parts, coded(joined_codes(codes.byte(), bits_O), parts)


def wanted(codes, parts):
    scale = parts["scale"].double()
    if parts["scale"].dtype == torch.uint8:
        scale = 2.0 ** (scale - 127)
    return numbers(codes, scale, parts.get("zero"), parts.get("table"), parts["bits"], parts.get("order"))


CASES = {**{f"{bits} bits": {"bits": bits} for bits in range(1, 9)},
         "a group a row": {"bits": 8, "groups": 1}, "zeros": {"bits": 4, "zero": True, "kind": torch.float32},
         "zeros of bytes": {"bits": 8, "zero": True}, "a table": {"bits": 4, "table": True},
         "powers": {"bits": 4, "kind": torch.uint8}, "several bits": {"bits": [4, 2, 8, 4, 3], "zero": True}}


@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_the_numbers(generator, monkeypatch, case):
    codes, parts, weight = drawn(generator, **CASES[case])
    want = wanted(codes, parts)
    x = torch.randn(7, WIDTH, generator=generator)
    for rows in (1, 2, 7):
        y = straight.product(weight, x[:rows])
        torch.testing.assert_close(y.double(), x[:rows].double() @ want.T, rtol=1e-5, atol=2e-5)
    half = x[:1].bfloat16()
    torch.testing.assert_close(weight.linear(half).double(), half.double() @ want.T, rtol=1e-2, atol=1e-2)
    types = (torch.float32, torch.bfloat16)
    plain = [straight.dequantised(weight, dtype) for dtype in types]
    monkeypatch.setattr(straight, "loops", lambda: None)
    straight.form_of.cache_clear()
    weight = coded(weight.codes, parts)
    for dtype, found in zip(types, plain):
        assert straight.dequantised(weight, dtype) is None
        assert torch.equal(found, weight.dequantised(dtype))  # the same bits without numba
    straight.form_of.cache_clear()


def test_rows_do_not_depend_on_those_beside_them_or_on_threads(generator, monkeypatch):
    monkeypatch.setattr(straight, "A_PART", 100)
    _, _, weight = drawn(generator, 4)
    x = torch.randn(3, WIDTH, generator=generator)
    alone = straight.product(weight, x[:1])
    many = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(straight.product(weight, x[:1]), alone)
    finally:
        torch.set_num_threads(many)
    torch.testing.assert_close(straight.product(weight, x)[:1], alone)


def test_codes_that_moved_are_read_where_they_are(generator):
    _, parts, weight = drawn(generator, 4)
    x = torch.randn(1, WIDTH, generator=generator)
    before = straight.product(weight, x)
    other = torch.zeros_like(weight.codes)
    weight.codes.data = other
    zeros = coded(other, parts).dequantised(torch.float32)
    after = straight.product(weight, x)
    again = copy.deepcopy(weight)
    assert torch.equal(straight.product(again, x), after)
    assert straight.matrices_of(again)[0].place != straight.matrices_of(weight)[0].place
    torch.testing.assert_close(after, x @ zeros.T)
    assert not torch.equal(after, before)


def test_columns_in_another_order_and_rounded_inputs(generator):
    codes, parts, _ = drawn(generator, 4)
    parts["order"] = torch.randperm(WIDTH, generator=generator).int()
    weight = coded(joined_codes(codes, parts["bits"]), parts)
    x = torch.randn(2, 2, WIDTH, generator=generator)
    torch.testing.assert_close(weight.linear(x).double(), x.double() @ wanted(codes, parts).T, rtol=1e-5, atol=1e-5)
    parts.pop("order")
    parts["input_bits"] = torch.tensor([8], dtype=torch.uint8)
    weight = coded(joined_codes(codes, parts["bits"]), parts)
    step = x.double().abs().amax(-1, keepdim=True) / 127
    rounded = (x.double() / step).round() * step
    torch.testing.assert_close(weight.linear(x).double(), rounded @ wanted(codes, parts).T, rtol=1e-5, atol=1e-5)


def test_what_the_loops_do_not_read_is_left_to_torch(generator):
    _, _, weight = drawn(generator, 4, groups=16)  # groups of eight numbers
    x = torch.randn(1, WIDTH, generator=generator)
    assert straight.product(weight, x) is None and straight.dequantised(weight, torch.float32) is None
    torch.testing.assert_close(weight.linear(x), x @ weight.dequantised(torch.float32).T)
    _, _, served = drawn(generator, 4)
    assert straight.product(served, x.double()) is None
    assert straight.product(served, x.expand(9, -1)) is None
    assert straight.product(served, x[:0]) is None and served.linear(x[:0]).shape == (0, ROWS)


def stacks(generator, bits=4, **options):
    """Two coded stacks of three experts of 64 hidden units, with the numbers they stand for."""
    made = []
    for outputs, width in ((128, WIDTH), (WIDTH, 64)):
        codes = torch.randint(0, 2**bits, (3, outputs, width), generator=generator, dtype=torch.uint8)
        bits_EO = torch.full((3, outputs), bits, dtype=torch.uint8)
        parts = {"bits": bits_EO, "scale": torch.rand(3, outputs, 2, generator=generator).div(2**bits).bfloat16()}
        if options.get("zero"):
            parts["zero"] = torch.randint(0, 2**bits, (3, outputs, 2), generator=generator, dtype=torch.uint8)
        if options.get("table"):
            parts["table"] = torch.randn(3, 2**bits, generator=generator)
        each = [{name: part[e] for name, part in parts.items()} for e in range(3)]
        plain = [wanted(codes[e], each[e]) for e in range(3)]
        made.append((coded(joined_codes(codes, bits_EO), parts), plain))
    return made


def through(x, into, out):
    gate, up = (into @ x).split(64)
    return out @ (gate / (1 + (-gate).exp()) * up)


@pytest.mark.parametrize("options", [{}, {"bits": 8}, {"zero": True}, {"bits": 2}, {"table": True}], ids=str)
def test_one_token_through_its_experts(generator, monkeypatch, options):
    (gate_up, into), (down, out) = stacks(generator, **options)
    x = torch.randn(1, WIDTH, generator=generator)
    weights = torch.tensor([[0.7, 0.2, 0.1]])
    want = 0.7 * through(x[0].double(), into[2], out[2]) + 0.1 * through(x[0].double(), into[0], out[0])
    with torch.no_grad():
        assert straight.expert_sum(x, weights, [2, -1, 0], gate_up, down) is not None
        y = one_token_mlp(x, weights, [2, -1, 0], gate_up, down)
    torch.testing.assert_close(y[0].double(), want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(straight, "A_PART", 100)
    shared = straight.expert_sum(x, weights, [2, -1, 0], gate_up, down)
    torch.testing.assert_close(shared, y)


def test_what_lies_beyond_a_weight_is_refused(generator):
    (gate_up, _), (down, _) = stacks(generator)
    x, weights = torch.randn(1, WIDTH, generator=generator), torch.ones(1, 1)
    with pytest.raises(ValueError, match="expert 3 of 3; expected numbers below"):
        straight.expert_sum(x, weights, [3], gate_up, down)
    with pytest.raises(ValueError, match="rows of 64 for a weight of 128 inputs"):
        straight.expert_sum(x[:, :64], weights, [0], gate_up, down)
    with pytest.raises(ValueError, match="rows of 64 for a weight of 128 inputs"):
        gate_up[0].linear(x[:, :64])


def test_experts_without_rows_and_with_many(generator):
    (gate_up, into), (down, out) = stacks(generator)
    counts = torch.tensor([0, 2, 11])
    x = torch.randn(13, WIDTH, generator=generator)
    with torch.no_grad():
        y = expert_mlp(x, counts, gate_up, down)
    for row, (own, value) in enumerate(zip(x.double(), y.double())):
        e = 1 if row < 2 else 2
        want = through(own, into[e], out[e])
        torch.testing.assert_close(value, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_stacks_of_several_bits_go_one_product_after_another(generator):
    (gate_up, _), (down, _) = stacks(generator)
    codes = torch.randint(0, 4, (3, 128, WIDTH), generator=generator, dtype=torch.uint8)
    bits = torch.tensor([[4], [2], [8]], dtype=torch.uint8).repeat(1, 128)
    mixed = coded(joined_codes(codes, bits), {"bits": bits, "scale": torch.rand(3, 128, 2, generator=generator)})
    x, weights = torch.randn(1, WIDTH, generator=generator), torch.tensor([[0.5, 0.5]])
    assert straight.expert_sum(x, weights, [0, 2], mixed, down) is None
    with torch.no_grad():
        y = one_token_mlp(x, weights, [0, 2], mixed, down)
        gate_up, plain = mixed.dequantised(torch.float32), down.dequantised(torch.float32)
        want = one_token_mlp(x, weights, [0, 2], gate_up, plain)
        torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def test_how_many_rows_pay_is_measured(monkeypatch):
    asked = []

    def fastest(calls):
        asked.append(list(calls))
        for call in calls.values():
            assert call().shape[-1] == straight.WIDTHS["large"][0]
        return "straight" if len(asked) < 3 else "plain"

    monkeypatch.setattr(straight, "fastest", fastest)
    found = straight.measure_rows()
    assert found == {"torch.float32": 3, "torch.bfloat16": 0}
    assert asked[0] == ["plain", "straight"]


def test_a_stack_whose_last_expert_begins_with_rows_as_long_as_the_others_is_no_stack_of_one_kind(generator):
    """Half as many rows of twice the bits fill the same bytes; what follows them is other rows."""
    bits = torch.full((2, 128), 2, dtype=torch.uint8)
    bits[1, :64], bits[1, 64:] = 4, 8
    codes = torch.randint(0, 4, (2, 128, WIDTH), generator=generator, dtype=torch.uint8)
    mixed = coded(joined_codes(codes, bits), {"bits": bits, "scale": torch.rand(2, 128, 2, generator=generator)})
    assert mixed.blocks[0][0].stop == mixed.blocks[1][0].stop - mixed.blocks[1][0].start
    assert straight.stack_of(mixed) is None


def test_parts_that_are_too_small_are_not_read(generator):
    codes, parts, _ = drawn(generator, 4, zero=True)
    few = {"table": torch.ones(15), "zero": parts["zero"][:-1], "scale": parts["scale"][:-1]}
    for name, part in few.items():
        weight = coded(joined_codes(codes, parts["bits"]), parts | {name: part})
        assert straight.matrices_of(weight) is None, name
    whole = coded(joined_codes(codes, parts["bits"]), parts)
    short = dataclasses.replace(whole, codes=whole.codes[:-1])
    assert straight.matrices_of(whole) is not None and straight.matrices_of(short) is None
