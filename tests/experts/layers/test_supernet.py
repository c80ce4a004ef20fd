"""Weights mixed by the width against a loop over neurons; what the router's shares are, and whose they are."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.supernet import Config, Supernet, folded
from mixwell.experts.layers.swiglu import Config as DenseConfig
from mixwell.experts.layers.swiglu import SwiGLU
from tests.experts.layers._loops import enlarged, same_forward_and_gradient, swiglu, tokens

HIDDEN, COUNT = 8, 3


def block_by_hand(layer, width, by):
    """Neuron by neuron, weight by weight."""
    router = layer.architecture
    code = (router.into[:, 0] * (width / HIDDEN) + router.into_bias).clamp(min=0)
    logits = router.out @ code + router.out_bias

    def row(neuron, parts):
        own = 0 if by == "layer" else neuron
        scores = logits[own * COUNT : (own + 1) * COUNT].exp()
        return sum(score / scores.sum() * part for score, part in zip(scores, parts))

    up_rows = [*range(width), *range(HIDDEN, HIDDEN + width)]
    gate_up = torch.stack([row(o, layer.gate_up_proj[:, o]) for o in up_rows])
    down = torch.stack([row(2 * HIDDEN + o, layer.down_proj[:, o, :width]) for o in range(6)])
    return gate_up, down


@pytest.mark.parametrize("by", ["neuron", "layer"])
@pytest.mark.parametrize("step, width", [(0, 8), (1, 4), (2, 2)])
def test_agrees_with_a_loop_forward_and_gradient(generator, by, step, width):
    config = Config(hidden_dim=HIDDEN, weights=COUNT, factors=(1, 2, 4), by=by, router_dim=5)
    layer = enlarged(Supernet(6, config, generator), 8.0).train()
    x = tokens(generator)
    expected = torch.stack([swiglu(token, *block_by_hand(layer, width, by)) for token in x])
    leaves = [x, *layer.parameters()]
    same_forward_and_gradient(layer(x, Context(step=step)).y_TD, expected, leaves, generator)


def test_one_weight_is_the_nested_dense_block_whatever_the_router_says(generator):
    layer = Supernet(6, Config(hidden_dim=8, weights=1), generator).eval()
    dense = SwiGLU(6, DenseConfig(hidden_dim=8), generator)
    with torch.no_grad():
        dense.gate_up_proj.copy_(layer.gate_up_proj[0])
        dense.down_proj.copy_(layer.down_proj[0])
    x = torch.randn(9, 6, generator=generator)
    torch.testing.assert_close(layer(x, Context(step=3)).y_TD, dense(x, Context()).y_TD)


def test_a_neuron_of_another_width_is_mixed_otherwise(generator):
    """Plain sharing gives the first units the same weights at every width."""
    layer = enlarged(Supernet(6, Config(hidden_dim=8, weights=3), generator), 20.0)
    wide, narrow = (folded(layer.gate_up_proj, layer.down_proj, layer.architecture(share), 4)[0] for share in (1, 0.5))
    assert float((wide - narrow).detach().abs().max()) > 0.05


def test_starts_as_large_as_a_plain_block(generator):
    layer = Supernet(64, Config(hidden_dim=64, weights=6), generator)
    gate_up, down = folded(layer.gate_up_proj, layer.down_proj, layer.architecture(1.0), 64)
    for weight in (gate_up, down):
        assert 0.018 < float(weight.detach().std()) < 0.023


def test_counts_its_flops(generator):
    assert Supernet(6, Config(hidden_dim=8), generator).flops_per_token() == 6 * 6 * 8


def test_refuses_what_makes_no_block():
    for name in ("hidden_dim", "weights", "router_dim"):
        with pytest.raises(ValueError, match=f"{name} is 0; expected at least 1"):
            Config(**{"hidden_dim": 8, name: 0})
    with pytest.raises(ValueError, match="factors has 3; expected divisors of hidden_dim = 8"):
        Config(hidden_dim=8, factors=(1, 3))
    with pytest.raises(ValueError, match="factors is empty"):
        Config(hidden_dim=8, factors=())
