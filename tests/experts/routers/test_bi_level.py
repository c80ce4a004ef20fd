"""Bi-level routing against loops, its two limits (one node, one expert a node), and its two balance losses."""

import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.routers.bi_level import BiLevel, Config, route
from mixwell.experts.routers.top_k import Config as TopKConfig
from mixwell.experts.routers.top_k import route as top_k


def softmax(values):
    total = sum(map(math.exp, values))
    return [math.exp(v) / total for v in values]


@pytest.mark.parametrize("local", ["shared", "per_node"])
@pytest.mark.parametrize("k", [1, 2])
def test_agrees_with_a_loop(generator, local, k):
    router = BiLevel(5, 6, Config(nodes=2, k=k, local=local, node_balance=0.5, local_balance=2.0), generator).double()
    x = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    mask = torch.arange(9) < 7
    found = router(x, Context(mask_T=mask))
    node_use, local_use = [0, 0], [0, 0, 0]
    node_mean, local_mean = [0.0, 0.0], [0.0, 0.0, 0.0]
    for t in range(9):
        p = softmax((router.node_weight @ x[t]).tolist())
        node = max(range(2), key=lambda i: p[i])
        rows = router.local_weight if local == "shared" else router.local_weight[3 * node : 3 * node + 3]
        q = softmax((rows @ x[t]).tolist())
        places = sorted(range(3), key=lambda j: -q[j])[:k]
        expected = {3 * node + j: p[node] * q[j] for j in places}
        assert dict(zip(found.indices_TK[t].tolist(), found.weights_TK[t].tolist())) == pytest.approx(expected)
        if mask[t]:
            node_use[node] += 1
            node_mean = [a + b / 7 for a, b in zip(node_mean, p)]
            local_mean = [a + b / 7 for a, b in zip(local_mean, q)]
            for j in places:
                local_use[j] += 1
    node_loss = 0.5 * 2 * sum(n / 7 * p for n, p in zip(node_use, node_mean))
    local_loss = 2.0 * 3 * sum(n / 7 / k * p for n, p in zip(local_use, local_mean))
    assert found.losses["node_balance"].item() == pytest.approx(node_loss)
    assert found.losses["local_balance"].item() == pytest.approx(local_loss)
    torch.testing.assert_close(found.scores_TE.sum(1), torch.ones(9).double())


def test_gradient(generator):
    node, local = (torch.randn(4, n, generator=generator, dtype=torch.float64, requires_grad=True) for n in (2, 3))

    def outputs(a, b):
        routing = route(a, b, Config(k=2))
        return routing.dense_TE(), *routing.losses.values()

    assert torch.autograd.gradcheck(outputs, (node, local))


def test_one_node_and_one_expert_a_node_are_flat_routing(generator):
    x = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    flat = TopKConfig(k=1)
    one_node = BiLevel(5, 4, Config(nodes=1), generator).double()
    torch.testing.assert_close(one_node(x, Context()).dense_TE(), top_k(x @ one_node.local_weight.T, flat).dense_TE())
    single = BiLevel(5, 4, Config(nodes=4), generator).double()
    torch.testing.assert_close(single(x, Context()).dense_TE(), top_k(x @ single.node_weight.T, flat).dense_TE())


def test_all_experts_of_a_token_lie_in_one_node(generator):
    router = BiLevel(5, 12, Config(nodes=3, k=3), generator)
    nodes = router(torch.randn(50, 5, generator=generator), Context()).indices_TK // 4
    assert (nodes == nodes[:, :1]).all() and len(nodes[:, 0].unique()) == 3


def test_each_loss_is_its_coefficient_at_balance():
    node = 9.0 * torch.eye(2).repeat(2, 1)
    local = 9.0 * torch.eye(2).repeat_interleave(2, 0)
    losses = route(node, local, Config(node_balance=0.3, local_balance=0.7)).losses
    torch.testing.assert_close((losses["node_balance"].item(), losses["local_balance"].item()), (0.3, 0.7))


def test_a_second_router_for_all_nodes_is_the_smaller_one(generator):
    sizes = {local: sum(p.numel() for p in BiLevel(5, 12, Config(nodes=3, local=local), generator).parameters())
             for local in ("shared", "per_node")}
    assert sizes == {"shared": 5 * (3 + 4), "per_node": 5 * (3 + 12)}


def test_refusals():
    with pytest.raises(ValueError, match="at least 1 each"):
        Config(nodes=0)
    with pytest.raises(ValueError, match="0 or more"):
        Config(node_balance=-0.1)
    for config in (Config(nodes=3), Config(nodes=2, k=3)):
        with pytest.raises(ValueError, match="equal nodes"):
            BiLevel(5, 4, config)
