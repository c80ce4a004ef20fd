"""Locality-aware routing: the group means, the divergence against a loop, and the floor of the capacity."""

import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.routers.locality_aware import Config, LocalityAware, capacity_floor, gate_rows, locality_loss


def loss_loop(scores, nodes, config):
    experts, size = len(scores[0]), len(scores[0]) // config.nodes
    total = 0.0
    for a in range(config.nodes):
        own = [row for row, node in zip(scores, nodes) if node == a]
        for e in range(experts):
            if not own:
                continue
            current = sum(row[e] for row in own) / len(own)
            local = (1 - config.leak) / size if e // size == a else config.leak / (experts - size)
            total += len(own) / len(scores) * current * math.log(current / local)
    return config.locality * total


@pytest.mark.parametrize("nodes", [2, 3])
def test_locality_loss_agrees_with_a_loop_and_has_its_gradient(generator, nodes):
    config = Config(nodes=nodes, locality=0.4, leak=0.05)
    logits = torch.randn(8, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    home = torch.tensor([0, 1, 0, 1, 1, 0, 1, 1])
    found = locality_loss(logits.softmax(-1), home, config)
    assert found.item() == pytest.approx(loss_loop(logits.softmax(-1).tolist(), home.tolist(), config))
    assert torch.autograd.gradcheck(lambda h: locality_loss(h.softmax(-1), home, config), (logits,))


@pytest.mark.parametrize("k", [1, 2])
def test_grap_takes_the_mean_of_each_group_of_features(generator, k):
    router = LocalityAware(8, 4, Config(k=k), generator)
    x = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    found = router(x, Context())
    for t, row in enumerate(x.tolist()):
        h = [(row[2 * i] + row[2 * i + 1]) / 2 for i in range(4)]
        assert found.logits_TE[t].tolist() == pytest.approx(h)
        assert found.indices_TK[t].tolist() == sorted(range(4), key=lambda e: -h[e])[:k]
    assert not list(router.parameters())


def test_gate_rows_are_exactly_orthogonal_and_the_linear_gate_starts_there(generator):
    gram = gate_rows(12, 4) @ gate_rows(12, 4).T
    assert torch.equal(gram, gram.diagonal().diag())
    x = torch.randn(6, 12, generator=generator)
    fixed, learnt = (LocalityAware(12, 4, Config(gate=gate), generator) for gate in ("grap", "linear"))
    torch.testing.assert_close(fixed(x, Context()).logits_TE, learnt(x, Context()).logits_TE)


def test_descending_the_loss_keeps_tokens_at_home(generator):
    config = Config(gate="linear", nodes=2, locality=1.0)
    router = LocalityAware(8, 4, config, generator)
    x = torch.cat([torch.randn(40, 8, generator=generator) + 1, torch.randn(40, 8, generator=generator) - 1])
    home = torch.arange(80) // 40
    crossing = []
    for _ in range(150):
        routing = router(x, Context())
        crossing.append((routing.indices_TK[:, 0] // 2 != home).float().mean().item())
        (gradient,) = torch.autograd.grad(routing.losses["locality"], router.weight)
        router.weight.data -= 0.5 * gradient
    assert crossing[0] > 0.3 and crossing[-1] < 0.1


def test_a_process_with_a_node_counts_all_its_tokens_as_that_nodes(generator):
    x = torch.randn(6, 8, generator=generator)
    found = LocalityAware(8, 4, Config(node=1), generator)(x, Context())
    expected = locality_loss(found.scores_TE, torch.ones(6, dtype=torch.int64), Config(node=1))
    torch.testing.assert_close(found.losses["locality"], expected)
    mask = torch.arange(6) < 4
    masked = LocalityAware(8, 4, Config(node=1), generator)(x, Context(mask_T=mask)).losses["locality"]
    torch.testing.assert_close(masked, locality_loss(found.scores_TE[:4], torch.ones(4), Config(node=1)))


def test_one_node_asks_for_even_use_alone():
    scores = torch.full((4, 4), 0.25)
    assert locality_loss(scores, torch.zeros(4), Config(nodes=1)).abs() < 1e-9


def test_capacity_floor_is_the_papers_bound():
    assert capacity_floor(0.0, 512, 8) == pytest.approx(1 / 8)
    exact = 1 / (8 * math.erfc(math.sqrt(0.09 * 512 / (2 - 0.09))))
    assert capacity_floor(0.3, 512, 8) == pytest.approx(exact) and exact > math.exp(0.09 * 512 / 1.91) / 8
    assert capacity_floor(0.1, 512, 8) < capacity_floor(0.2, 512, 8)


@pytest.mark.parametrize("options, message", [
    ({"node": 2, "nodes": 2}, "0 up to nodes"), ({"locality": -1.0}, "0 or more"), ({"leak": 0.0}, "0 to 1"),
    ({"k": 1, "renormalise": True}, "without a gradient"),
])
def test_config_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_refuses_widths_and_nodes_that_do_not_divide():
    with pytest.raises(ValueError, match="do not divide the width"):
        LocalityAware(9, 4)
    with pytest.raises(ValueError, match="into 3 nodes"):
        LocalityAware(8, 4, Config(nodes=3))
    with pytest.raises(ValueError, match="0 up to 1"):
        capacity_floor(1.0, 8, 2)
