"""The Cartesian product of experts against a loop over pairs."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context, Routing
from mixwell.experts.layers.cartesian import CartesianMoE, Config, in_series, pair_load
from tests.experts.layers._loops import enlarged, mixture, same_forward_and_gradient, swiglu, tokens


def half(part, x, shared):
    def expert(e, z):
        return swiglu(z, part.gate_up_proj[e], part.down_proj[e])

    y = mixture(x, part.router(x, Context()).dense_TE(), expert)
    if shared:
        y = y + torch.stack([swiglu(z, part.shared_gate_up_proj, part.shared_down_proj) for z in x])
    return y


@pytest.mark.parametrize("options", [
    {}, {"shared_experts": 0, "router": {"k": 1}, "norm_eps": 0.1}, {"shared_hidden_dim": 3, "balance": {"switch": 1}},
])
def test_agrees_with_a_loop_forward_and_gradient(generator, options):
    config = Config(num_experts=3, hidden_dim=4, **options)
    layer = enlarged(CartesianMoE(6, config, generator), 8)
    x = tokens(generator)
    shared = config.shared_experts > 0
    h = x + half(layer.first, x, shared)
    h = h / (h.square().mean(1, keepdim=True) + config.norm_eps).sqrt() * layer.norm_weight
    expected = half(layer.second, h, shared)
    same_forward_and_gradient(layer(x, Context()).y_TD, expected, [x, *layer.parameters()], generator)


def test_a_pair_shares_one_factor_with_its_row_and_one_with_its_column(generator):
    """Changing an expert of the first half changes the tokens of its row of pairs, and no other token."""
    layer = CartesianMoE(6, Config(num_experts=3, hidden_dim=4, shared_experts=0, router={"k": 1}), generator)
    x = torch.randn(40, 6, generator=generator)
    before = layer(x, Context())
    with torch.no_grad():
        layer.first.down_proj[1] += 0.5
    after = layer(x, Context())
    row = before.routing.indices_TK[:, 0] == 1
    moved = (before.y_TD - after.y_TD).abs().amax(1) > 0
    assert torch.equal(row, moved) and 0 < int(row.sum()) < 40


def test_without_first_experts_the_second_half_is_left(generator):
    layer = CartesianMoE(6, Config(num_experts=3, hidden_dim=4), generator)
    with torch.no_grad():
        layer.first.down_proj.zero_()
        layer.first.shared_down_proj.zero_()
    x = torch.randn(9, 6, generator=generator)
    normed = torch.nn.functional.rms_norm(x, (6,), eps=1e-5)
    torch.testing.assert_close(layer(x, Context()).y_TD, layer.second(normed, Context()).y_TD)


def test_losses_are_means_and_aux_is_the_sum(generator):
    layer = CartesianMoE(6, Config(num_experts=3, hidden_dim=4), generator)
    x = torch.randn(9, 6, generator=generator)
    mixed, a = layer(x, Context()), layer.first(x, Context())
    assert set(mixed.losses) == {"switch", "z_loss"}
    expected = 2 * (0.01 * mixed.losses["switch"] + 0.001 * mixed.losses["z_loss"])
    torch.testing.assert_close(mixed.aux, expected)
    assert mixed.aux > a.aux


def test_pairs_are_counted_with_empty_slots_left_out():
    first = Routing(torch.tensor([[0, 1], [1, -1]]), torch.ones(2, 2), torch.ones(2, 2))
    second = Routing(torch.tensor([[1, -1], [0, 1]]), torch.ones(2, 2), torch.ones(2, 2))
    both = in_series(first, second)
    assert both.indices_TK.tolist() == [[0, 1, 3, -1], [1, -1, 2, 3]]
    assert pair_load(both, 2).tolist() == [[0, 1], [1, 2]]
    assert both.load_E().tolist() == [1, 2, 1, 2]


def test_counts_its_flops(generator):
    layer = CartesianMoE(6, Config(num_experts=3, hidden_dim=4), generator)
    assert layer.flops_per_token() == 2 * (6 * 6 * (2 * 4 + 4) + 2 * 6 * 3)


def test_refuses(generator):
    with pytest.raises(ValueError, match="norm_eps is 0"):
        Config(num_experts=3, hidden_dim=4, norm_eps=0)
    with pytest.raises(MixwellError, match="choose 1 to 3"):
        CartesianMoE(6, Config(num_experts=3, hidden_dim=4, router={"k": 4}), generator)
