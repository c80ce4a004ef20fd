"""The kernels against loops in float64, in every form a weight can take."""

import copy

import pytest
import torch
from torch import nn

from mixwell.core.machine import hold_memory
from mixwell.kernels import expert_rows, packing
from mixwell.kernels import experts as kernels
from mixwell.kernels.adapted import AdaptedWeight
from mixwell.kernels.experts import expert_mlp, grouped_mlp, mlp, swiglu
from mixwell.kernels.linear import linear
from mixwell.kernels.packing import Int8Weight, PackedWeight, pack, prepack, weight_of
from mixwell.kernels.probe import INT8_TYPES, ROWS, Choices
from mixwell.kernels.products import works

D, F, E = 8, 16, 4
COUNTS = torch.tensor([5, 0, 11, 1])
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 0.03}


def loop(x: torch.Tensor, counts: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Row by row."""
    experts = torch.arange(len(counts)).repeat_interleave(counts)
    rows = []
    for row, e in zip(x, experts):
        hidden = gate_up[e] @ row
        gate, up = hidden[: hidden.shape[0] // 2], hidden[hidden.shape[0] // 2 :]
        rows.append(down[e] @ (gate / (1 + torch.exp(-gate)) * up))
    return torch.stack(rows)


def inputs(generator: torch.Generator) -> list[torch.Tensor]:
    """x [N, D], gate_up [E, 2F, D], down [E, D, F] in float64."""
    shapes = (int(COUNTS.sum()), D), (E, 2 * F, D), (E, D, F)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.5 for shape in shapes]


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    assert (got.double() - want).abs().max() <= tolerance * want.abs().max()


@pytest.fixture(params=[False, True])
def grouped(request, monkeypatch):
    """Whether experts with few rows go through torch's grouped product, where it takes their type."""
    monkeypatch.setattr(kernels, "_FEW_ROWS", 32 if request.param else 0)
    monkeypatch.setattr(kernels, "is_torchs", lambda *_: True)
    return request.param


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_experts_agree_with_a_loop_forward_and_gradients(generator, dtype, grouped):
    wide = [t.to(dtype).double().requires_grad_() for t in inputs(generator)]
    narrow = [t.detach().to(dtype).requires_grad_() for t in wide]
    want, got = loop(wide[0], COUNTS, *wide[1:]), expert_mlp(narrow[0], COUNTS, *narrow[1:])
    assert got.dtype == dtype
    close(got, want, TOLERANCE[dtype])
    grad = torch.randn(want.shape, generator=generator, dtype=torch.float64).to(dtype)
    grads = torch.autograd.grad(got, narrow, grad)
    for a, b in zip(grads, torch.autograd.grad(want, wide, grad.double())):
        close(a, b, TOLERANCE[dtype])
    assert not grads[1][1].any() and not grads[2][1].any()


def test_gradients_match_finite_differences(generator):
    x, gate_up, down = inputs(generator)
    leaves = [t.clone().requires_grad_() for t in (x[:5, :4], gate_up[:2, :6, :4], down[:2, :4, :3])]
    assert torch.autograd.gradcheck(lambda *a: expert_mlp(a[0], torch.tensor([2, 3]), *a[1:]), leaves)
    assert torch.autograd.gradcheck(lambda *a: mlp(a[0], a[1][0], a[2][0]), leaves)
    assert torch.autograd.gradcheck(swiglu, leaves[0])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_linear_agrees_with_float64(generator, dtype):
    x = torch.randn(3, 7, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(F, D, generator=generator).to(dtype).requires_grad_()
    grad = torch.randn(3, 7, F, generator=generator).to(dtype)
    y = linear(x, weight)
    close(y, x.double() @ weight.double().T, TOLERANCE[dtype])
    gx, gw = torch.autograd.grad(y, (x, weight), grad)
    close(gx, grad.double() @ weight.double(), TOLERANCE[dtype])
    close(gw, torch.einsum("abf,abd->fd", grad.double(), x.double()), TOLERANCE[dtype])
    assert linear(x[:, :0], weight).shape == (3, 0, F)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("few", [0, 1 << 30])
def test_inference_takes_another_path_to_the_same_result(monkeypatch, generator, dtype, few, packed_form):
    monkeypatch.setattr(kernels, "_FEW_BYTES", few)
    x, gate_up, down = (t.bfloat16().to(dtype) for t in inputs(generator))
    trained = expert_mlp(x.clone().requires_grad_(), COUNTS, gate_up, down)
    with torch.no_grad():
        close(expert_mlp(x, COUNTS, gate_up, down), trained.double(), TOLERANCE[dtype])
        close(expert_mlp(x, COUNTS, pack(gate_up), pack(down)), trained.double(), TOLERANCE[dtype])
        close(mlp(x, pack(gate_up[0]), pack(down[0])), mlp(x, gate_up[0], down[0]).double(), TOLERANCE[dtype])


def test_one_token_is_the_weighted_sum_of_its_experts(generator):
    _, gate_up, down = inputs(generator)
    x, weights = (torch.randn(1, n, generator=generator, dtype=torch.float64) for n in (D, 3))
    rows = loop(x.expand(2, D), torch.tensor([1, 0, 1, 0]), gate_up, down)  # experts 0 and 2
    want = weights[:, 0] * rows[1] + weights[:, 2] * rows[0]
    with torch.no_grad():
        close(kernels.one_token_mlp(x, weights, [2, -1, 0], gate_up, down), want, 1e-12)
        assert not kernels.one_token_mlp(x, weights, [-1, -1, -1], gate_up, down).any()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("counts", [COUNTS, COUNTS * 0], ids=["some rows", "no rows"])
def test_experts_of_any_form_one_after_another(generator, monkeypatch, counts, biased):
    """Those without rows are not computed, and their weights get a gradient of zeros."""
    called = []
    monkeypatch.setattr(kernels, "linear", lambda *args: called.append(args) or linear(*args))
    x, into, out_of = (t.requires_grad_() for t in inputs(generator))
    biases = [torch.randn(E, n, generator=generator, dtype=torch.float64).requires_grad_() for n in (2 * F, D)]
    halves = lambda hidden: hidden[:, :F].sin() * hidden[:, F:]  # noqa: E731
    x = x[: counts.sum()]
    got = kernels.each_expert(x, counts.tolist(), into, out_of, halves, tuple(biases) if biased else None)
    assert len(called) == 2 * max(1, int((counts > 0).sum()))
    experts = torch.arange(E).repeat_interleave(counts)
    hidden = torch.einsum("nd,nfd->nf", x, into[experts]) + biased * biases[0][experts]
    want = torch.einsum("nf,ndf->nd", halves(hidden), out_of[experts]) + biased * biases[1][experts]
    leaves = [into, out_of, *(biases if biased else ())]
    for a, b in zip([got, *torch.autograd.grad(got.square().sum(), leaves)],
                    [want, *torch.autograd.grad(want.square().sum(), leaves)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("change, served", [
    ("nothing", True), ("more rows", False), ("no rows", False), ("another library", False), ("float64", False),
    ("odd width", False), ("odd hidden width", False), ("rows apart", False), ("weights apart", False)])
def test_torchs_grouped_product_serves_few_rows_that_it_takes(generator, monkeypatch, grouped, change, served):
    called = []
    monkeypatch.setattr(kernels, "grouped_mlp", lambda *args: called.append(args) or grouped_mlp(*args))
    x, gate_up, down = (t.float() for t in inputs(generator))
    counts = COUNTS
    if change == "more rows":
        x, counts = x.repeat(8, 1), COUNTS * 8  # 34 an expert
    elif change == "no rows":
        x, counts = x[:0], COUNTS * 0
    elif change == "another library":
        monkeypatch.setattr(kernels, "is_torchs", lambda like, rows, numel: numel != F * D)
    elif change == "float64":
        x, gate_up, down = x.double(), gate_up.double(), down.double()
    elif change == "odd width":
        x, gate_up, down = x[:, 1:].contiguous(), gate_up[..., 1:].contiguous(), down[:, 1:].contiguous()
    elif change == "odd hidden width":
        gate_up, down = gate_up[:, 2:].contiguous(), down[..., 1:].contiguous()
    elif change == "rows apart":
        x = x.t().contiguous().t()
    elif change == "weights apart":
        gate_up = gate_up.transpose(1, 2).contiguous().transpose(1, 2)
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, gate_up, down)]
    y = expert_mlp(leaves[0], counts, *leaves[1:])
    assert bool(called) == (grouped and served)
    want = loop(x.double(), counts, gate_up.double(), down.double()) if len(x) else x.double()
    assert y.shape == want.shape
    if len(x):
        close(y, want, 2e-6)
    y.sum().backward()  # a gradient without strides


@pytest.mark.parametrize("count", [*range(1, 70), 127, 128, 129, 1000, 4095])
def test_rows_are_widened_by_less_than_a_sixteenth_to_sixteen_numbers_an_octave(count):
    wider = expert_rows._wider(slice(3, 3 + count), 10_000)
    rows = wider.stop - wider.start
    assert wider.start == 3 and count <= rows < count * 17 / 16
    octave = {expert_rows._wider(slice(0, n), 10_000).stop for n in range(count, 2 * count)}
    assert len(octave) <= 17  # two octaves have a part in it
    assert expert_rows._wider(slice(3, 3 + count), 3 + count).stop == 3 + count  # there are no rows behind the last


def test_experts_whose_rows_are_widened_agree_with_a_loop(generator, monkeypatch):
    monkeypatch.setattr(kernels, "compiles", lambda *_: True)
    counts = torch.tensor([33, 0, 65, 7])
    assert [s.rows.stop - s.rows.start for s in expert_rows.spans_of(counts.tolist(), True)] == [34, 68, 7]
    _, gate_up, down = inputs(generator)
    x = torch.randn(int(counts.sum()), D, generator=generator, dtype=torch.float64)
    ours, plainly = ([t.clone().requires_grad_() for t in (x, gate_up, down)] for _ in range(2))
    got, want = expert_mlp(ours[0], counts, *ours[1:]), loop(plainly[0], counts, *plainly[1:])
    close(got, want, 1e-12)
    slopes = torch.randn(want.shape, generator=generator, dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(got, ours, slopes), torch.autograd.grad(want, plainly, slopes)):
        close(a, b, 1e-12)
    with torch.no_grad():
        monkeypatch.setattr(kernels, "_FEW_BYTES", 0)
        close(expert_mlp(x, counts, gate_up, down), want, 1e-12)


def test_no_rows_at_all():
    x, gate_up, down = torch.empty(0, D, requires_grad=True), torch.randn(E, 2 * F, D), torch.randn(E, D, F)
    leaves = [x, gate_up.requires_grad_(), down.requires_grad_()]
    y = expert_mlp(x, torch.zeros(E, dtype=torch.int64), gate_up, down)
    assert y.shape == (0, D)
    grads = torch.autograd.grad(y.sum(), leaves)
    assert not any(g.any() for g in grads)
    with torch.no_grad():
        assert expert_mlp(x, torch.zeros(E, dtype=torch.int64), gate_up, down).shape == (0, D)


def test_nothing_unwritten_is_read(generator, grouped):
    """With fresh memory full of NaN every number is still finite, and an expert's bad row harms no other expert."""
    x, gate_up, down = (t.float().requires_grad_() for t in inputs(generator))
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives with NaN
    try:
        y = expert_mlp(x, COUNTS, gate_up, down)
        assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), (x, gate_up, down)))
        bad = x.detach().clone()
        bad[5:16] = float("nan")
        y_bad = expert_mlp(bad.requires_grad_(), COUNTS, gate_up, down)
        assert y_bad[:5].equal(y[:5]) and y_bad[16:].equal(y[16:]) and y_bad[5:16].isnan().all()
    finally:
        torch.use_deterministic_algorithms(before)


def test_frozen_parts_get_no_gradient_and_the_rest_the_same(generator, grouped):
    x, gate_up, down = (t.float() for t in inputs(generator))
    leaves = [t.clone().requires_grad_() for t in (x, gate_up, down)]
    whole = torch.autograd.grad(expert_mlp(leaves[0], COUNTS, *leaves[1:]).square().sum(), leaves)
    for i in range(3):
        alone = [t.clone().requires_grad_(i == j) for j, t in enumerate((x, gate_up, down))]
        (grad,) = torch.autograd.grad(expert_mlp(alone[0], COUNTS, *alone[1:]).square().sum(), alone[i])
        assert grad.equal(whole[i])


def test_same_bits_each_time(generator, grouped):
    x, gate_up, down = (t.bfloat16() for t in inputs(generator))

    def once() -> tuple[torch.Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in (x, gate_up, down)]
        return torch.autograd.grad(expert_mlp(leaves[0], COUNTS, *leaves[1:]).float().square().sum(), leaves)

    assert all(a.equal(b) for a, b in zip(once(), once()))


def test_grouped_products_agree_with_the_loop_over_experts(generator):
    """The path of CUDA devices; torch's grouped product runs on a CPU too."""
    x, gate_up, down = (t.bfloat16() for t in inputs(generator))
    leaves = [[t.clone().requires_grad_() for t in (x, gate_up, down)] for _ in range(2)]
    ours, grouped = expert_mlp(leaves[0][0], COUNTS, *leaves[0][1:]), grouped_mlp(leaves[1][0], COUNTS, *leaves[1][1:])
    close(grouped, ours.double(), 0.03)
    grad = torch.randn(x.shape, generator=generator).bfloat16()
    for a, b in zip(torch.autograd.grad(grouped, leaves[1], grad), torch.autograd.grad(ours, leaves[0], grad)):
        close(a, b.double(), 0.03)


class Nothing:
    """A change that does nothing."""

    maps_input = requires_grad = False

    def before(self, x):
        return x

    def after(self, x, y, weight):
        return y

    def unbind(self):
        return [self] * E


def test_a_gradient_that_is_one_number_passes_the_experts_beside_a_change(generator, grouped):
    """A sum's gradient has no strides, which torch's grouped product refuses."""
    sides = [[t.float().requires_grad_() for t in inputs(generator)]]
    sides.append([t.detach().clone().requires_grad_() for t in sides[0]])
    for (x, gate_up, down), changed in zip(sides, (False, True)):
        into = AdaptedWeight(gate_up, gate_up, Nothing()) if changed else gate_up
        expert_mlp(x, COUNTS, into, down).sum().backward()
    for plain, beside in zip(*sides):
        torch.testing.assert_close(plain.grad, beside.grad)


def test_int8_weights_are_their_values_times_their_scale(generator):
    values = [torch.randint(-127, 128, s, generator=generator, dtype=torch.int8) for s in ((E, 2 * F, D), (E, D, F))]
    weights = [Int8Weight(v, torch.rand(*v.shape[:2], 1, generator=generator) / 100) for v in values]
    wide = [w.values.double() * w.scale.double() for w in weights]
    x = torch.randn(int(COUNTS.sum()), D, generator=generator, dtype=torch.float64)
    want = loop(x, COUNTS, *wide)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            close(expert_mlp(x.to(dtype), COUNTS, *weights), want, TOLERANCE[dtype])
        for rows in (1, 4, 17):
            close(linear(x[:rows].to(dtype), weights[0][2]), x[:rows] @ wide[0][2].T, TOLERANCE[dtype])
    leaf, leaf64 = x.float().requires_grad_(), x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(expert_mlp(leaf, COUNTS, *weights).square().sum(), leaf)
    (grad64,) = torch.autograd.grad(loop(leaf64, COUNTS, *wide).square().sum(), leaf64)
    close(grad, grad64, 1e-5)
    (grad,) = torch.autograd.grad(linear(leaf, weights[0][0]).sum(), leaf)
    close(grad, wide[0][0].sum(0).expand_as(leaf), 1e-5)


@pytest.mark.parametrize("width", [40, 64, 128])
@pytest.mark.parametrize("rows", [1, 4, 5])
@pytest.mark.parametrize("straight", [0, 4])
def test_int8_products_of_few_rows(generator, monkeypatch, width, rows, straight):
    """Up to so many rows of a width that is a multiple of 64 are taken straight from int8, all others made wide."""
    exact = ("blas",) * len(ROWS)
    monkeypatch.setattr(packing, "choices", lambda: Choices({}, exact, exact, dict.fromkeys(INT8_TYPES, straight)))
    weight = Int8Weight(torch.randint(-127, 128, (30, width), generator=generator, dtype=torch.int8),
                        torch.rand(30, 1, generator=generator))
    x = torch.randn(1, rows, width, generator=generator)
    want = x.double() @ (weight.values.double() * weight.scale.double()).T
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            got = linear(x.to(dtype), weight)
        assert got.shape == (1, rows, 30) and got.dtype == dtype
        close(got, want, TOLERANCE[dtype])


class Layer(nn.Module):
    """Two weights, one of them packable."""

    packable = ("weight",)

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(F, D, generator=generator).bfloat16().float())
        self.other = nn.Parameter(torch.randn(F, D, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, weight_of(self, "weight")) + linear(x, weight_of(self, "other"))


def test_packed_weights_serve_without_gradient_until_the_weight_changes(generator, packed_form):
    layer = Layer(generator)
    x = torch.randn(9, D, generator=generator)
    assert prepack(nn.Sequential(layer)) == F * D * (2 if packed_form == "fp16" else 4)
    assert weight_of(layer, "weight") is layer.weight
    with torch.no_grad():
        assert isinstance(weight_of(layer, "weight"), PackedWeight) and weight_of(layer, "other") is layer.other
        close(layer(x), x.double() @ (layer.weight + layer.other).double().T, 2e-6)
        twin = copy.deepcopy(layer)
        close(twin(x), layer(x).double(), 2e-6)
        layer.weight.mul_(2)
        assert weight_of(layer, "weight") is layer.weight
        close(layer(x), x.double() @ (layer.weight + layer.other).double().T, 2e-6)
        prepack(layer)
        assert isinstance(weight_of(layer, "weight"), PackedWeight)
        layer.to(torch.bfloat16)
        assert weight_of(layer, "weight") is layer.weight
    assert set(layer.state_dict()) == {"weight", "other"}
    with torch.inference_mode():
        assert isinstance(weight_of(copy.deepcopy(twin), "weight"), torch.Tensor)
    assert pack(torch.randn(F, D, dtype=torch.float64)) is None


@pytest.mark.parametrize("dtype, least", [(torch.float32, 1024), (torch.bfloat16, 128)])
def test_weights_are_packed_where_many_tokens_follow_and_the_copies_fit(generator, monkeypatch, dtype, least):
    exact = ("onednn packed",) * len(ROWS)
    monkeypatch.setattr(packing, "choices", lambda: Choices({}, exact, exact))
    if not works("onednn packed", dtype):
        pytest.skip("this processor or build of torch has no packed products")
    layer = Layer(generator).to(dtype)
    int8 = nn.Module()
    int8.weight, int8.packable = nn.Parameter(torch.ones(F, D, dtype=torch.int8), requires_grad=False), ("weight",)
    model = nn.Sequential(layer, int8, nn.Identity())
    most = F * D * packing._COPIES[dtype]
    monkeypatch.setattr(packing, "free_bytes", lambda: 2 * most)
    assert packing.prepack_where_it_pays(model, least - 1) == 0
    assert 0 < packing.prepack_where_it_pays(model, least) <= most
    with torch.no_grad():
        assert isinstance(weight_of(layer, "weight"), PackedWeight)
    assert not int8.packed_weights
    monkeypatch.setattr(packing, "free_bytes", lambda: 2 * most - 1)
    assert packing.prepack_where_it_pays(model, least) == 0


def test_int8_parameters_are_found_with_their_scale(generator):
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.ones(F, D, dtype=torch.int8), requires_grad=False)
    layer.register_buffer("weight_scale", torch.full((F, 1), 0.5))
    found = weight_of(layer, "weight")
    assert isinstance(found, Int8Weight) and found.shape == (F, D)
    assert found.dequantised(torch.float32).equal(torch.full((F, D), 0.5))


def test_packed_weights_refuse_a_gradient(generator, packed_form):
    x = torch.randn(4, D, requires_grad=True)
    gate_up, down = pack(torch.ones(2 * F, D)), pack(torch.ones(D, F))
    stacks = pack(torch.ones(1, 2 * F, D)), pack(torch.ones(1, D, F))
    for function in (lambda: linear(x, gate_up), lambda: mlp(x, gate_up, down),
                     lambda: expert_mlp(x, torch.tensor([4]), *stacks)):
        with pytest.raises(ValueError, match="packed weights carry no gradient"):
            function()


def test_swiglu_leaves_its_input_and_gradient_alone(generator):
    hidden = torch.randn(3, 2 * F, generator=generator, requires_grad=True)
    grad, before = torch.randn(3, F, generator=generator), hidden.detach().clone()
    y = swiglu(hidden)
    kept = grad.clone()
    y.backward(grad)
    assert hidden.equal(before) and grad.equal(kept)
    gate, up = before[:, :F], before[:, F:]
    close(y, gate.double() * gate.double().sigmoid() * up.double(), 1e-6)


def test_memory_can_be_held():
    assert hold_memory() is hold_memory()
