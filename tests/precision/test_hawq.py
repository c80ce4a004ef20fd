"""HAWQ: products, traces and eigenvalues against an exact Hessian, widths against trying all, experts apart."""

import itertools

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.precision._allocation import allocate
from mixwell.precision._parts import nearest
from mixwell.precision.hawq import Config, Curvature, example, harms, hawq, largest_eigenvalue, promises, traces
from tests.contracts._conversions import calibration, whole


class Quadratic:
    """A loss 1/2 w^T A w over all weights side by side, whose Hessian is A."""

    def __init__(self, A, names, shapes):
        self.A, self.names, self.shapes = A, names, shapes

    def slopes(self, checkpoint, at, *, rows=0):
        flat = torch.cat([at[name].flatten() for name in self.names])
        sizes = [shape.numel() for shape in self.shapes]
        parts = (self.A @ flat).split(sizes)
        yield {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes)}


class Held:
    def __init__(self, tensors):
        self.tensors = tensors


@pytest.fixture
def quadratic(generator):
    shapes = [torch.Size((2, 3)), torch.Size((2, 2, 2))]
    A = torch.randn(14, 14, generator=generator, dtype=torch.float64)
    A = A @ A.T
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in zip("ab", shapes)}
    return A, Curvature(Held(tensors), ["a", "b"], Quadratic(A, ["a", "b"], shapes))


def test_traces_and_eigenvalues_are_those_of_the_blocks(generator, quadratic):
    A, curvature = quadratic
    places, spans = [("a", None), ("b", 0), ("b", 1)], [slice(0, 6), slice(6, 10), slice(10, 14)]
    found = traces(curvature, places, 600, generator)
    for place, span, trace in zip(places, spans, found.tolist()):
        block = A[span, span]
        assert trace == pytest.approx(float(block.trace()), rel=0.2)
        eigenvalue = largest_eigenvalue(curvature, place, 100, generator)
        assert eigenvalue == pytest.approx(float(torch.linalg.eigvalsh(block)[-1]), rel=0.01)


def test_products_are_those_of_the_models_hessian(generator):
    """Central differences of central differences of the loss itself."""
    checkpoint, text = whole(example(generator)["checkpoint"]), calibration(rows=2)
    name = "layers.0.channel_mixer.down_proj"
    curvature = Curvature(checkpoint, [name], text)
    v = torch.randn(3, 16, 8, generator=generator, dtype=torch.float64)
    found = float((curvature.times({name: v})[name] * v).sum())
    step, nats = 1e-3, []
    for k in (-1, 0, 1):
        moved = checkpoint.tensors[name].double() + k * step * v
        nats.append(_nats(checkpoint, name, moved, text))
    assert found == pytest.approx((nats[0] - 2 * nats[1] + nats[2]) / step**2, rel=1e-3)


def _nats(checkpoint, name, value, text):
    from tests.contracts._conversions import logits

    tokens = torch.cat(list(text.batches))
    out = logits(checkpoint.derive(tensors={**checkpoint.tensors, name: value}), tokens)[:, :-1]
    return float(-out.log_softmax(-1).gather(-1, tokens[:, 1:, None]).mean())


@pytest.mark.parametrize("budget", [18.0, 25.0, 40.0])
def test_the_program_finds_what_trying_all_finds(generator, budget):
    harm = torch.rand(5, 3, generator=generator).sort(1, descending=True).values * 1e-7
    size = torch.tensor([[2.0, 4, 8]]) * torch.tensor([[1.0], [2], [1], [3], [2]])
    best = min((sum(float(harm[u, b]) for u, b in enumerate(choice)), choice)
               for choice in itertools.product(range(3), repeat=5)
               if sum(float(size[u, b]) for u, b in enumerate(choice)) <= budget)
    assert allocate(harm, size, budget) == list(best[1])


def test_the_frontier_falls_and_an_impossible_budget_is_refused(generator):
    harm = torch.rand(4, 3, generator=generator).sort(1, descending=True).values
    size = torch.tensor([[2.0, 4, 8]]).expand(4, 3)
    choices = [allocate(harm, size, budget) for budget in (8.0, 16.0, 32.0)]
    points = [(float(size[range(4), choice].sum()), float(harm[range(4), choice].sum())) for choice in choices]
    assert [taken for taken, _ in points] == sorted(taken for taken, _ in points) and points[0][0] == 8
    assert points[0][1] > points[1][1] > points[2][1]
    with pytest.raises(ValueError, match="the budget is 7; the smallest widths take 8"):
        allocate(harm, size, 7.0)


def test_harm_is_mean_trace_times_the_sum_of_squares(generator):
    weight = torch.randn(4, 8, generator=generator)
    config = Config(widths=(2, 4), group_size=8)
    error = (nearest(weight, 4, 8, True).weight().dequantised(torch.float64) - weight.double()).square().sum()
    found = harms([weight], torch.tensor([6.4]), config)
    assert float(found[0, 1]) == pytest.approx(6.4 / 32 * float(error), rel=1e-6)


@pytest.mark.parametrize("measure", ["trace", "eigenvalue"])
def test_the_budget_is_kept_and_experts_differ(generator, measure):
    checkpoint = whole(example(generator)["checkpoint"])
    config = Config(measure=measure, widths=(2, 4, 8), bits_per_weight=3.5, group_size=8, draws=1)
    after = hawq(checkpoint, config, generator, calibration())
    bits = after.lineage[-1]["bits"]
    total = sum(width * checkpoint.tensors[name].numel() / len(own) for name, own in bits.items() for width in own)
    count = sum(checkpoint.tensors[name].numel() for name in bits)
    assert 2.5 < total / count <= 3.5
    assert len({width for own in bits.values() for width in own}) > 1
    name = "layers.0.channel_mixer.down_proj"
    assert [int(row[0]) for row in after.tensors[f"{name}.bits"]] == bits[name]


def test_refusals(generator):
    checkpoint = whole(example(generator)["checkpoint"])
    with pytest.raises(MixwellError, match=r"^layers\.0\.sequence_mixer\.out\.weight: group_size 16 does not divide"):
        hawq(checkpoint, Config(group_size=16, draws=1), generator, calibration())
    flat = checkpoint.derive(tensors={**checkpoint.tensors, "head.weight": torch.zeros(13, 16)})
    with pytest.raises(MixwellError, match="bends at no matrix"):
        hawq(flat, Config(group_size=8, draws=1), generator, calibration())
    with pytest.raises(ValueError, match="bits_per_weight is 1; expected at least 2"):
        Config(bits_per_weight=1)
    with pytest.raises(ValueError, match=r"widths is \(1,\)"):
        Config(widths=(1,))
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
