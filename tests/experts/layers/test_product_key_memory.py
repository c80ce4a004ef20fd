"""The product-key memory against a search over every slot."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers._memory import product_top_k
from mixwell.experts.layers.product_key_memory import Config, ProductKeyMemory
from tests.experts.layers._loops import enlarged, same_forward_and_gradient, tokens


def brute(layer, x, weights):
    """Score all n^2 slots of every head, keep the k best."""
    config, n = layer.config, layer.config.num_keys
    y = torch.zeros_like(x)
    for h in range(config.heads):
        q = layer.memory.query[h] @ x
        if config.normalise:
            q = (q - q.mean()) / (q.var(unbiased=False) + 1e-5).sqrt()
        halves = q.chunk(2)
        s = torch.stack([layer.memory.keys[h, 0, i] @ halves[0] + layer.memory.keys[h, 1, j] @ halves[1]
                         for i in range(n) for j in range(n)])
        best = sorted(range(n * n), key=lambda slot: -float(s[slot].detach()))[:config.k]
        w = s[best].softmax(0) if weights == "softmax" else torch.relu(s[best])
        for i, slot in enumerate(best):
            y = y + w[i] * layer.values[slot]
    return y


@pytest.mark.parametrize("weights, normalise", [("softmax", True), ("relu", True), ("softmax", False)])
def test_agrees_with_a_search_forward_and_gradient(generator, weights, normalise):
    config = Config(num_keys=5, k=4, heads=2, key_dim=3, weights=weights, normalise=normalise)
    layer = enlarged(ProductKeyMemory(6, config, generator), 2)
    x = tokens(generator)
    expected = torch.stack([brute(layer, z, weights) for z in x])
    same_forward_and_gradient(layer(x, Context()).y_TD, expected, [x, *layer.parameters()], generator)


@pytest.mark.parametrize("n, k", [(4, 1), (6, 6), (40, 7), (128, 32)])
def test_retrieval_is_exact(generator, n, k):
    rows, columns = torch.randn(2, 20, n, generator=generator)
    scores, slots = product_top_k(rows, columns, k)
    every = (rows.unsqueeze(2) + columns.unsqueeze(1)).flatten(1)
    best = every.topk(k)
    torch.testing.assert_close(scores, best.values)
    assert torch.equal(slots, best.indices)


def test_all_slots_of_one_key_each_are_attention_over_the_memory(generator):
    """k = n = 1: one value, picked with weight 1."""
    layer = ProductKeyMemory(6, Config(num_keys=1, k=1, heads=3), generator)
    x = torch.randn(4, 6, generator=generator)
    torch.testing.assert_close(layer(x, Context()).y_TD, 3 * layer.values.expand(4, 6))


def test_relu_weights_do_not_compete(generator):
    """With softmax the weights of a head sum to 1 whatever the scores; with relu a bad match counts for nothing."""
    x = torch.randn(30, 6, generator=generator)
    soft = ProductKeyMemory(6, Config(num_keys=5, k=5, heads=2, key_dim=3), torch.Generator().manual_seed(1))
    relu = ProductKeyMemory(6, Config(num_keys=5, k=5, heads=2, key_dim=3, weights="relu"),
                            torch.Generator().manual_seed(1))
    torch.testing.assert_close(soft.retrieve(x)[0].sum(-1), torch.ones(30, 2))
    scores = relu.memory(x, 5)[0]
    torch.testing.assert_close(relu.retrieve(x)[0], scores * (scores > 0))
    with torch.no_grad():
        relu.memory.keys.zero_()
    assert (relu(x, Context()).y_TD == 0).all()


def test_counts_its_flops(generator):
    layer = ProductKeyMemory(6, Config(num_keys=5, k=3, heads=2, key_dim=4), generator)
    queries, keys, values = 2 * 2 * 8 * 6, 2 * 2 * 2 * 5 * 4, 2 * 2 * 3 * 6
    assert layer.flops_per_token() == queries + keys + values
    assert layer(torch.zeros(0, 6), Context()).y_TD.shape == (0, 6)


def test_refuses():
    with pytest.raises(ValueError, match="k is 6; expected 1 to num_keys = 5"):
        Config(num_keys=5, k=6)
