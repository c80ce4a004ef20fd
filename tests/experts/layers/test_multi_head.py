"""The multi-head mixture against a loop over tokens, heads and experts."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.moe import Config as PlainConfig
from mixwell.experts.layers.moe import MoE
from mixwell.experts.layers.multi_head import Config, MultiHeadMoE, parity
from tests.experts.layers._loops import enlarged, mixture, same_forward_and_gradient, swiglu, tokens


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_agrees_with_a_loop_forward_and_gradient(generator, heads):
    layer = enlarged(MultiHeadMoE(6, Config(num_experts=4, hidden_dim=5, heads=heads), generator), 5)
    x = tokens(generator)
    parts = torch.stack([(layer.head_proj @ row) for row in x]).reshape(-1, 6 // heads)
    weights = layer.router(parts, Context()).dense_TE()
    mixed = mixture(parts, weights, lambda e, z: swiglu(z, layer.gate_up_proj[e], layer.down_proj[e]))
    expected = torch.stack([layer.merge_proj @ row for row in mixed.reshape(-1, 6)])
    same_forward_and_gradient(layer(x, Context()).y_TD, expected, [x, *layer.parameters()], generator)


def test_one_head_between_identities_is_the_plain_mixture(generator):
    layer = MultiHeadMoE(6, Config(num_experts=4, hidden_dim=5, heads=1), generator)
    plain = MoE(6, PlainConfig(num_experts=4, hidden_dim=5), generator)
    with torch.no_grad():
        layer.head_proj.copy_(torch.eye(6))
        layer.merge_proj.copy_(torch.eye(6))
    plain.load_state_dict(layer.state_dict(), strict=False)
    x = torch.randn(9, 6, generator=generator)
    ours, theirs = layer(x, Context()), plain(x, Context())
    torch.testing.assert_close(ours.y_TD, theirs.y_TD)
    torch.testing.assert_close(ours.aux, theirs.aux)


def test_a_token_reaches_more_experts_than_k(generator):
    layer = MultiHeadMoE(12, Config(num_experts=16, hidden_dim=5, heads=4, router={"k": 2}), generator)
    routing = layer(torch.randn(40, 12, generator=generator), Context()).routing
    assert routing.indices_TK.shape == (40, 8) and routing.scores_TE.shape == (40, 16)
    distinct = [len(set(row)) for row in routing.indices_TK.tolist()]
    assert sum(distinct) / len(distinct) > 2 * 2


@pytest.mark.parametrize("heads, own_k", [(2, 2), (3, 2), (2, 4)])
def test_parity_in_parameters_and_flops(generator, heads, own_k):
    config = Config(num_experts=8, hidden_dim=64, heads=heads, parity_k=2, router={"k": own_k})
    layer = MultiHeadMoE(24, config, generator)
    plain = MoE(24, PlainConfig(num_experts=8, hidden_dim=64), generator)

    def size(module):
        return sum(p.numel() for p in module.parameters())

    assert (layer.num_experts, layer.hidden_dim) == parity(24, 8, 64, 2, heads, own_k)
    assert abs(size(layer) / size(plain) - 1) < 0.02
    assert abs(layer.flops_per_token() / plain.flops_per_token() - 1) < 0.02


def test_sub_tokens_inherit_what_is_known_of_their_token(generator):
    ids = torch.tensor([3, 1, 2])
    config = Config(num_experts=4, hidden_dim=5, router={"method": "hash", "vocab_size": 5}, balance={})
    layer = MultiHeadMoE(6, config, generator)
    layer.router.fit_tokens(torch.arange(5).repeat(20))
    indices = layer(torch.randn(3, 6, generator=generator), Context(token_ids_T=ids)).routing.indices_TK
    assert torch.equal(indices[:, 0], indices[:, 1])


def test_counts_its_flops(generator):
    layer = MultiHeadMoE(6, Config(num_experts=4, hidden_dim=5), generator)
    assert layer.flops_per_token() == 2 * (2 * 6 * 6) + 2 * (2 * 2 * 3 * (10 + 5)) + 2 * 2 * 3 * 4


@pytest.mark.parametrize("options, message", [
    ({"heads": 4}, "does not divide into 4 heads"),
    ({"parity_k": 2}, "widen the experts"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadMoE(6, Config(num_experts=4, hidden_dim=2, **options))
    with pytest.raises(ValueError, match="parity_k is 9"):
        Config(num_experts=4, hidden_dim=2, parity_k=9)
