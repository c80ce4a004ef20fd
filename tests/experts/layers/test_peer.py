"""Single-neuron experts against a search over all of them."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers import _memory
from mixwell.experts.layers.peer import PEER, Config
from tests.experts.layers._loops import enlarged, same_forward_and_gradient, tokens

gelu = torch.nn.functional.gelu


def brute(layer, x):
    """Every head scores every expert; the k best act as neurons."""
    config, n = layer.config, layer.config.num_keys
    y = torch.zeros_like(x)
    for h in range(config.heads):
        q = layer.memory.query[h] @ x
        if config.normalise:
            q = (q - q.mean()) / (q.var(unbiased=False) + 1e-5).sqrt()
        a, b = q.chunk(2)
        s = torch.stack([layer.memory.keys[h, 0, i] @ a + layer.memory.keys[h, 1, j] @ b
                         for i in range(n) for j in range(n)])
        best = sorted(range(n * n), key=lambda e: -float(s[e].detach()))[:config.k]
        g = s[best].softmax(0) if config.scores == "softmax" else torch.sigmoid(s[best])
        for i, e in enumerate(best):
            y = y + g[i] * gelu(layer.up_proj[e] @ x) * layer.values[e]
    return y


@pytest.mark.parametrize("scores, normalise", [("softmax", True), ("sigmoid", False)])
@pytest.mark.parametrize("block", [1, 10**6])
def test_agrees_with_a_search_forward_and_gradient(generator, monkeypatch, scores, normalise, block):
    monkeypatch.setattr(_memory, "_BLOCK_BYTES", block)
    config = Config(num_keys=5, k=3, heads=2, key_dim=3, scores=scores, normalise=normalise)
    layer = enlarged(PEER(6, config, generator), 2)
    x = tokens(generator)
    expected = torch.stack([brute(layer, z) for z in x])
    same_forward_and_gradient(layer(x, Context()).y_TD, expected, [x, *layer.parameters()], generator)


def test_retrieved_neurons_assemble_a_dense_block(generator):
    """One expert in all, one head: a block of one neuron with weight 1."""
    layer = PEER(6, Config(num_keys=1, k=1, heads=1), generator)
    x = torch.randn(9, 6, generator=generator)
    torch.testing.assert_close(layer(x, Context()).y_TD, gelu(x @ layer.up_proj.T) @ layer.values)


def test_compute_does_not_grow_with_the_pool_but_by_its_keys(generator):
    small, large = (PEER(6, Config(num_keys=n, k=3, heads=2, key_dim=4), generator) for n in (4, 16))
    assert large.values.shape[0] == 16 * small.values.shape[0]
    assert large.flops_per_token() - small.flops_per_token() == 2 * 2 * 2 * 4 * (16 - 4)


def test_counts_its_flops(generator):
    layer = PEER(6, Config(num_keys=5, k=3, heads=2, key_dim=4), generator)
    queries, keys, neurons = 2 * 2 * 8 * 6, 2 * 2 * 2 * 5 * 4, 2 * (2 * 2 * 3 * 6)
    assert layer.flops_per_token() == queries + keys + neurons
    assert layer(torch.zeros(0, 6), Context()).y_TD.shape == (0, 6)


def test_frozen_experts_and_inputs_take_no_gradient(generator):
    layer = PEER(6, Config(num_keys=5, k=3, heads=2, key_dim=4), generator)
    layer.up_proj.requires_grad_(False)
    layer(torch.randn(3, 6, generator=generator), Context()).y_TD.sum().backward()
    assert layer.up_proj.grad is None and layer.values.grad.abs().max() > 0


def test_refuses():
    with pytest.raises(ValueError, match="k is 16; expected 1 to num_keys = 5"):
        Config(num_keys=5)


def test_experts_start_with_one_over_the_root_of_the_width(generator):
    layer = PEER(100, Config(num_keys=20, k=2, heads=1, key_dim=4), generator)
    for weight in (layer.up_proj, layer.values):
        assert weight.std().item() == pytest.approx(0.1, rel=0.05)
