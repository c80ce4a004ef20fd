"""MoE-X against a loop, as one wide sparse block, and its estimate of sparsity against a count."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.interpretable import Config, InterpretableMoE, activity
from tests.experts.layers._loops import enlarged, same_forward_and_gradient, tokens


def estimate(up, x):
    """The expected share of active units, less one half, doubled; one expert, one token."""
    mean, square = up.mean(0), (up - up.mean(0)).square().mean(0)
    return torch.erf((mean @ x) / (2 * (square @ x.square())).sqrt())


@pytest.mark.parametrize("k", [1, 2, 4])
def test_agrees_with_a_loop_forward_and_gradient(generator, k):
    layer = enlarged(InterpretableMoE(6, Config(num_experts=4, hidden_dim=5, k=k), generator))
    x = tokens(generator)
    rows = []
    for z in x:
        logits = torch.stack([-estimate(up, z) for up in layer.up_proj])
        chosen = sorted(range(4), key=lambda e: -float(logits[e].detach()))[:k]
        weights = logits[chosen].softmax(0) if k > 1 else logits.softmax(0)[chosen]
        rows.append(sum(w * (layer.down_proj[e] @ torch.relu(layer.up_proj[e] @ z)) for w, e in zip(weights, chosen)))
    same_forward_and_gradient(layer(x, Context()).y_TD, torch.stack(rows), [x, *layer.parameters()], generator)


def test_is_one_wide_block_with_a_mask(generator):
    layer = InterpretableMoE(6, Config(num_experts=4, hidden_dim=5), generator)
    x = torch.randn(9, 6, generator=generator)
    mixed = layer(x, Context())
    mask = mixed.routing.dense_TE().repeat_interleave(5, dim=1)
    hidden = torch.relu(x @ layer.up_proj.flatten(0, 1).T)
    wide = (mask * hidden) @ layer.down_proj.transpose(0, 1).flatten(1).T
    torch.testing.assert_close(mixed.y_TD, wide)


def test_the_estimate_is_the_expected_share_of_active_units(generator):
    up = torch.randn(5, 4000, 8, generator=generator) + 0.5 * torch.randn(5, 1, 8, generator=generator)
    x = torch.randn(30, 8, generator=generator)
    counted = (torch.einsum("td,efd->tef", x, up) > 0).double().mean(-1)
    torch.testing.assert_close((1 + activity(x, up).double()) / 2, counted, atol=0.03, rtol=0)


def test_tokens_go_to_the_sparsest_experts(generator):
    layer = InterpretableMoE(8, Config(num_experts=6, hidden_dim=500, k=2), generator)
    with torch.no_grad():
        layer.up_proj.add_(0.01 * torch.randn(6, 1, 8, generator=generator))
    x = torch.randn(60, 8, generator=generator)
    active = (torch.einsum("td,efd->tef", x, layer.up_proj) > 0).double().mean(-1)
    taken = active.gather(1, layer(x, Context()).routing.indices_TK).mean()
    assert taken < active.mean() - 0.05


def test_even_logits_where_nothing_is_known(generator):
    layer = InterpretableMoE(6, Config(num_experts=4, hidden_dim=5), generator)
    mixed = layer(torch.zeros(3, 6), Context())
    torch.testing.assert_close(mixed.routing.weights_TK, torch.full((3, 2), 0.5))
    assert torch.isfinite(mixed.aux)


def test_counts_its_flops(generator):
    layer = InterpretableMoE(6, Config(num_experts=4, hidden_dim=5, k=3, balance={}), generator)
    assert layer.flops_per_token() == 3 * 2 * (2 * 6 * 5) + 2 * (2 * 6 * 4)
    assert layer(torch.zeros(0, 6), Context()).aux is None


@pytest.mark.parametrize("options, message", [({"k": 5}, "choose 1 to 4"), ({"hidden_dim": 1}, "at least 2")])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**({"num_experts": 4, "hidden_dim": 5} | options))
