"""The hyper-network router against a plain loop, and its promise: a fixed network, a trainable embedding."""

import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.routers.hyper_network import Config, HyperNetwork, route, write_weights


def test_agrees_with_a_plain_loop(generator):
    router = HyperNetwork(5, 3, Config(k=2, embedding_dim=4, hidden_dim=7), generator).double()
    with torch.no_grad():
        router.inner_bias.normal_(generator=generator)
        router.outer_bias.normal_(generator=generator)
    x = torch.randn(6, 5, generator=generator).double()
    r, inner, outer = router.embedding.tolist(), router.inner.tolist(), router.outer.tolist()
    hidden = [max(0.0, sum(a * b for a, b in zip(row, r)) + c) for row, c in zip(inner, router.inner_bias.tolist())]
    flat = [sum(a * b for a, b in zip(row, hidden)) + c for row, c in zip(outer, router.outer_bias.tolist())]
    logits = [[(sum(x[t, d].item() * flat[e * 6 + d] for d in range(5)) + flat[e * 6 + 5]) / math.sqrt(5)
               for e in range(3)] for t in range(6)]
    routing = router(x, Context())
    torch.testing.assert_close(routing.logits_TE, torch.tensor(logits).double())
    for t, row in enumerate(logits):
        best = sorted(range(3), key=lambda e: -row[e])[:2]
        total = sum(math.exp(row[e]) for e in best)
        assert routing.weights_TK[t].tolist() == pytest.approx([math.exp(row[e]) / total for e in best])


def test_gradient(generator):
    shapes = ((4,), (7, 4), (7,), (18, 7), (18,))
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)

    def weights(embedding, *network):
        w = write_weights(embedding, network, 3)
        return route(x @ w[:, :-1].T + w[:, -1], Config(k=1)).dense_TE()

    assert torch.autograd.gradcheck(weights, tuple(inputs))


@pytest.mark.parametrize("train_network", [False, True])
def test_the_network_is_fixed_unless_told(generator, train_network):
    router = HyperNetwork(6, 4, Config(train_network=train_network), generator)
    trained = {name for name, p in router.named_parameters() if p.requires_grad}
    assert trained == ({"embedding", "inner", "inner_bias", "outer", "outer_bias"} if train_network else {"embedding"})
    assert {"inner", "outer"} <= router.state_dict().keys()  # what is fixed is saved all the same
    assert router.embedding.shape == (6,) and router.inner.shape == (1, 6)


def test_every_expert_chosen_gives_the_dense_mixture(generator):
    router = HyperNetwork(6, 4, Config(k=4), generator)
    routing = router(torch.randn(5, 6, generator=generator), Context())
    torch.testing.assert_close(routing.dense_TE(), routing.scores_TE)


@pytest.mark.parametrize("name", ["k", "embedding_dim", "hidden_dim"])
def test_refuses(name):
    with pytest.raises(ValueError, match=f"{name} is 0; expected at least 1"):
        Config(**{name: 0})
