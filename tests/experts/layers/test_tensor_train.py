"""Matrix product operators against sums over bonds; the mixture against a loop; the gradient mask."""

import itertools
import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.layers.tensor_train import Config, TensorTrainMoE, contract, decompose, factorise, shapes
from tests.experts.layers._loops import enlarged, mixture, same_forward_and_gradient, swiglu, tokens


def entry(parts, outs, ins):
    """One entry of the matrix: the sum over all bonds of products of entries."""
    total = 0.0
    for bonds in itertools.product(*(range(p.shape[3]) for p in parts[:-1])):
        left, right = (0, *bonds), (*bonds, 0)
        value = 1.0
        for p, a, o, i, b in zip(parts, left, outs, ins, right):
            value = value * p[a, o, i, b]
        total = total + value
    return total


def matrix(parts):
    """The whole matrix from `entry`."""
    outs = list(itertools.product(*(range(p.shape[1]) for p in parts)))
    ins = list(itertools.product(*(range(p.shape[2]) for p in parts)))
    return torch.stack([torch.stack([entry(parts, o, i) for i in ins]) for o in outs])


def of_expert(operators, e):
    return [t if k == operators.middle else t[e] for k, t in enumerate(operators.tensors)]


@pytest.mark.parametrize("tensors, rank", [(3, 2), (3, None), (5, 2)])
def test_agrees_with_a_loop_forward_and_gradient(generator, tensors, rank):
    config = Config(num_experts=3, hidden_dim=2, tensors=tensors, rank=rank)
    layer = enlarged(TensorTrainMoE(4, config, generator), 3)
    x = tokens(generator, 5, 4)
    weights = [(matrix(of_expert(layer.gate_up, e)), matrix(of_expert(layer.down, e))) for e in range(3)]
    expected = mixture(x, layer.router(x, Context()).dense_TE(), lambda e, z: swiglu(z, *weights[e]))
    same_forward_and_gradient(layer(x, Context()).y_TD, expected, [x, *layer.parameters()], generator)


@pytest.mark.parametrize("rows, columns, tensors", [(12, 10, 3), (16, 24, 5), (7, 6, 3)])
def test_full_rank_reconstructs_any_matrix(generator, rows, columns, tensors):
    wanted = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    parts = decompose(wanted, tensors)
    assert [tuple(p.shape) for p in parts] == shapes(rows, columns, tensors, None)
    torch.testing.assert_close(contract(parts), wanted, atol=1e-12, rtol=0)


def test_lower_bonds_approximate_better_and_better(generator):
    wanted = torch.randn(12, 10, generator=generator, dtype=torch.float64)
    errors = [float((contract(decompose(wanted, 3, rank)) - wanted).norm()) for rank in (1, 3, 6, 12)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-10


def test_experts_share_the_centre_and_the_count_is_exact(generator):
    config = Config(num_experts=16, hidden_dim=32, tensors=5, rank=8)
    layer = TensorTrainMoE(16, config, generator)
    expected = 0
    for rows, columns in ((64, 16), (16, 32)):
        sizes = [math.prod(s) for s in shapes(rows, columns, 5, 8)]
        expected += sizes[2] + 16 * (sum(sizes) - sizes[2])
    count = sum(p.numel() for n, p in layer.named_parameters() if not n.startswith("router"))
    assert count == expected < 16 * 3 * 16 * 32 / 3
    centre = layer.gate_up.tensors[2]
    assert centre.dim() == 4 and all(t.shape[0] == 16 for k, t in enumerate(layer.gate_up.tensors) if k != 2)


def test_starts_at_the_scale_of_other_experts(generator):
    layer = TensorTrainMoE(32, Config(num_experts=4, hidden_dim=32, tensors=3, rank=16), generator)
    weights = layer.gate_up(torch.arange(4), None)
    assert weights.shape == (4, 64, 32) and float(weights.detach().std()) == pytest.approx(0.02, rel=0.3)


def test_each_masked_expert_takes_its_own_part_out_of_the_centres_gradient(generator):
    operators = TensorTrainMoE(6, Config(num_experts=4, hidden_dim=4, tensors=3), generator).gate_up
    probe, every = torch.randn(4, 8, 6, generator=generator), torch.arange(4)

    def gradient(masked):
        return torch.autograd.grad((operators(every, masked) * probe).sum(), operators.tensors[1])[0]

    masked = torch.tensor([True, False, True, False])
    alone = [gradient(every != e) for e in range(4)]
    torch.testing.assert_close(gradient(masked), alone[1] + alone[3])
    torch.testing.assert_close(gradient(None), sum(alone))


@pytest.mark.parametrize("mask", [0.5, 1.0])
def test_the_mask_spares_the_outer_tensors_and_the_result(generator, mask):
    config = Config(num_experts=4, hidden_dim=4, tensors=3, mask=mask, router={"k": 4})
    layer = enlarged(TensorTrainMoE(6, config, generator), 3)
    x = tokens(generator).detach()

    def gradients(context, training=True):
        layer.train(training).zero_grad()
        y = layer(x, context).y_TD
        y.square().sum().backward()
        return y.detach(), layer.gate_up.tensors[1].grad.clone(), layer.gate_up.tensors[0].grad.clone()

    free = gradients(Context(), training=False)
    drawn = gradients(Context(generator=torch.Generator().manual_seed(5)))
    torch.testing.assert_close(drawn[0], free[0])
    torch.testing.assert_close(drawn[2], free[2])
    if mask == 1:
        assert (drawn[1] == 0).all()
    else:
        draws = torch.rand(4, generator=torch.Generator().manual_seed(5)) < mask
        assert draws.any() and not draws.all() and drawn[1].abs().max() > 0
        assert not torch.allclose(drawn[1], free[1])
    with pytest.raises(MixwellError, match="mask: 0"):
        layer(x, Context())


def test_factors_are_even_and_largest_in_the_middle():
    for size in (1, 7, 48, 768, 3072, 1000):
        parts = factorise(size, 5)
        assert math.prod(parts) == size and parts[2] == max(parts)


def test_counts_its_flops(generator):
    layer = TensorTrainMoE(6, Config(num_experts=4, hidden_dim=4, tensors=3, balance={"switch": 0.5}), generator)
    mixed = layer(torch.randn(5, 6, generator=generator), Context())
    torch.testing.assert_close(mixed.aux, 0.5 * mixed.losses["switch"])
    assert layer.flops_per_token() == 2 * 6 * 6 * 4 + 2 * 6 * 4
    assert layer(torch.zeros(0, 6), Context()).y_TD.shape == (0, 6)


@pytest.mark.parametrize("options, message", [
    ({"tensors": 4}, "odd number"), ({"mask": 2.0}, "mask is 2.0"), ({"rank": 0}, "rank is 0"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(num_experts=4, hidden_dim=4, **options)
