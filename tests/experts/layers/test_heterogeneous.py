"""Experts of unequal width against a loop; their sizes; the penalty that goes with them."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.heterogeneous import Config, HeterogeneousMoE, hidden_dims
from mixwell.experts.layers.moe import Config as PlainConfig
from mixwell.experts.layers.moe import MoE
from tests.experts.layers._loops import enlarged, mixture, same_forward_and_gradient, swiglu, tokens


@pytest.mark.parametrize("options", [
    {"ratio": 2.3}, {"progression": "geometric", "ratio": 6.0}, {"widths": (1, 2, 8, 9)},
    {"router": {"method": "threshold", "threshold": 0.6}},
])
def test_agrees_with_a_loop_forward_and_gradient(generator, options):
    layer = enlarged(HeterogeneousMoE(6, Config(num_experts=4, hidden_dim=5, **options), generator))
    x = tokens(generator)
    starts = [sum(layer.hidden_dims[:e]) for e in range(5)]

    def expert(e, z):
        start, stop = starts[e], starts[e + 1]
        return swiglu(z, layer.gate_up_proj[2 * start:2 * stop], layer.down_proj[:, start:stop])

    expected = mixture(x, layer.router(x, Context()).dense_TE(), expert)
    same_forward_and_gradient(layer(x, Context()).y_TD, expected, [x, *layer.parameters()], generator)


def test_sizes_are_the_papers_ladder_and_always_sum_up():
    assert hidden_dims(Config(num_experts=8, hidden_dim=16)) == (9, 11, 13, 15, 17, 19, 21, 23)
    for progression in ("arithmetic", "geometric"):
        for ratio in (1.0, 3.0, 40.0):
            widths = hidden_dims(Config(num_experts=6, hidden_dim=10, progression=progression, ratio=ratio))
            assert sum(widths) == 60 and min(widths) >= 1 and list(widths) == sorted(widths)
    geometric = hidden_dims(Config(num_experts=4, hidden_dim=375, progression="geometric", ratio=8.0))
    assert geometric == (100, 200, 400, 800)


def test_equal_sizes_are_the_plain_mixture_and_its_balance(generator):
    layer = HeterogeneousMoE(6, Config(num_experts=4, hidden_dim=5, ratio=1.0), generator)
    plain = MoE(6, PlainConfig(num_experts=4, hidden_dim=5), generator)
    with torch.no_grad():
        plain.router.weight.copy_(layer.router.weight)
        plain.gate_up_proj.copy_(layer.gate_up_proj.view(4, 10, 6))
        plain.down_proj.copy_(layer.down_proj.view(6, 4, 5).transpose(0, 1))
    x = torch.randn(9, 6, generator=generator)
    ours, theirs = layer(x, Context()), plain(x, Context())
    torch.testing.assert_close(ours.y_TD, theirs.y_TD)
    torch.testing.assert_close(ours.losses["parameter_penalty"], theirs.losses["switch"])
    torch.testing.assert_close(ours.aux, theirs.aux)


def test_the_penalty_prefers_small_experts(generator):
    """Following the penalty alone moves slots from the widest expert to the narrowest."""
    config = Config(num_experts=4, hidden_dim=5, ratio=4.0, router={"k": 1}, balance={"parameter_penalty": 1.0})
    layer = HeterogeneousMoE(6, config, generator)
    x = torch.randn(100, 6, generator=generator)
    before = layer.flops_of(layer(x, Context()))
    optimiser = torch.optim.SGD(layer.router.parameters(), lr=5.0)
    for _ in range(12):
        optimiser.zero_grad()
        layer(x, Context()).aux.backward()
        optimiser.step()
    assert layer.flops_of(layer(x, Context())) < before


def test_counts_its_flops(generator):
    layer = HeterogeneousMoE(6, Config(num_experts=4, hidden_dim=5, router={"k": 4}), generator)
    mixed = layer(torch.randn(9, 6, generator=generator), Context())
    assert layer.flops_per_token() == layer.flops_of(mixed) == 6 * 6 * 20 + 2 * 6 * 4
    with pytest.raises(ValueError, match="got none"):
        layer.flops_of(layer(torch.zeros(0, 6), Context()))


@pytest.mark.parametrize("options, message", [
    ({"ratio": 0.5}, "ratio is 0.5"), ({"widths": (5, 5)}, "4 numbers"), ({"widths": (5, 5, 5, 6)}, "sum to .* = 20"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(num_experts=4, hidden_dim=5, **options)


def test_no_penalty_by_default_for_a_router_without_logits(generator):
    router = {"method": "hash", "vocab_size": 5}
    layer = HeterogeneousMoE(6, Config(num_experts=4, hidden_dim=5, router=router), generator)
    assert layer.balance == ()


def test_given_sizes_stay(generator):
    balance = {"parameter_penalty": {"coefficient": 1.0, "sizes": [1, 1, 1, 1]}}
    config = Config(num_experts=4, hidden_dim=5, balance=balance)
    layer = HeterogeneousMoE(6, config, generator)
    assert layer.balance[0].config.sizes == (1.0, 1.0, 1.0, 1.0)
