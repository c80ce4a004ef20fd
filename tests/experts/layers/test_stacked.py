"""The deep mixture against a loop over tokens and pairs of experts, and its balance constraint."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.stacked import Config, DeepMixture, constrained
from tests.experts.layers._loops import enlarged, same_forward_and_gradient, tokens


def build(generator, **options):
    config = Config(**{"first_experts": 3, "second_experts": 2, "hidden_dim": 5, "gate_hidden_dim": 4, **options})
    return enlarged(DeepMixture(6, config, generator))


def gate(layer, level, v):
    hidden = layer.gate_hidden[level].weight @ v
    return torch.exp(layer.gates[level].weight @ torch.where(hidden > 0, hidden, 0 * hidden))


def relu(v):
    return torch.where(v > 0, v, 0 * v)


def loop(layer, x_TD, over=()):
    """Token by token; `over` are the experts (of both levels, in one count) whose gates are zeroed."""
    E1 = layer.config.first_experts
    rows = []
    for x in x_TD:
        g1 = torch.stack([0 * e if i in over else e for i, e in enumerate(gate(layer, 0, x))])
        z1 = sum(g1[i] / g1.sum() * relu(layer.first_proj[i] @ x) for i in range(E1))
        g2 = torch.stack([0 * e if E1 + j in over else e for j, e in enumerate(gate(layer, 1, z1))])
        z2 = sum(g2[j] / g2.sum() * relu(layer.second_proj[j] @ z1) for j in range(len(g2)))
        rows.append(layer.down_proj @ z2)
    return torch.stack(rows)


def test_agrees_with_a_loop_forward_and_gradient(generator):
    layer, x = build(generator), tokens(generator)
    same_forward_and_gradient(layer(x, Context()).y_TD, loop(layer, x), [x, *layer.parameters()], generator)


def test_an_expert_far_ahead_is_zeroed_early_in_training_only(generator):
    layer, x = build(generator, margin=10.0, constrained_steps=5), tokens(generator)
    layer.update(torch.tensor([100.0, 80.0, 0.0, 30.0, 12.0]))  # means 60 and 21; ahead by 40, 20, and 9
    bound = layer.train()(x, Context(step=4))
    same_forward_and_gradient(bound.y_TD, loop(layer, x, over={0, 1}), [x, *layer.parameters()], generator)
    assert bound.routing.scores_TE[:, :2].abs().max() == 0
    torch.testing.assert_close(bound.routing.scores_TE[:, 2], torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(layer(x, Context(step=5)).y_TD, loop(layer, x))
    torch.testing.assert_close(layer.eval()(x, Context(step=0)).y_TD, loop(layer, x))
    free = build(torch.Generator().manual_seed(7), margin=10.0, constrained_steps=0).train()
    free.update(layer.totals)
    torch.testing.assert_close(free(x, Context()).y_TD, loop(free, x))


def test_the_constraint_holds_totals_together(generator):
    """A gate that always wants one expert spreads all the same: totals stay within a margin and a step of the mean."""
    layer = build(generator, margin=20.0, constrained_steps=100).train()
    x = torch.randn(10, 6, generator=generator, dtype=torch.float64).abs()
    with torch.no_grad():
        layer.gate_hidden[0].weight.fill_(1.0)
        layer.gates[0].weight.copy_(torch.tensor([[9.0], [1.0], [0.0]]).expand(3, 4))
    for step in range(40):
        layer.update(layer.assigned(layer(x, Context(step=step)).routing))
    totals = layer.totals[:3]
    assert totals.sum().item() == pytest.approx(400)
    assert (totals - totals.mean()).max() <= 20 + 10
    unbound = layer.eval()(x, Context()).routing.scores_TE[:, :3].sum(0)
    assert unbound[0] > 9.9


def test_the_number_of_paths_is_the_product_of_the_experts(generator):
    """Each pair of experts is a function of its own: six different ones from three and two."""
    layer = build(generator)
    x = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    outputs = []
    for i in range(3):
        for j in range(2):
            z1 = relu(layer.first_proj[i] @ x[0])
            outputs.append(layer.down_proj @ relu(layer.second_proj[j] @ z1))
    assert torch.pdist(torch.stack(outputs)).min() > 1e-3


def test_one_expert_a_level_is_a_plain_network(generator):
    layer, x = build(generator, first_experts=1, second_experts=1), tokens(generator)
    plain = torch.relu(torch.relu(x @ layer.first_proj[0].T) @ layer.second_proj[0].T) @ layer.down_proj.T
    torch.testing.assert_close(layer(x, Context()).y_TD, plain)


def test_both_gates_stand_in_the_routing_and_padding_in_no_total(generator):
    layer, x = build(generator), tokens(generator)
    routing = layer(x, Context()).routing
    assert routing.num_experts == 5
    torch.testing.assert_close(routing.scores_TE[:, :3].sum(1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(routing.scores_TE[:, 3:].sum(1), torch.ones(9, dtype=torch.float64))
    mask = torch.tensor([True] * 4 + [False] * 5)
    torch.testing.assert_close(layer.assigned(routing, mask), routing.scores_TE[:4].sum(0))
    torch.testing.assert_close(layer.assigned(routing).sum(), torch.tensor(18.0, dtype=torch.float64))


def test_totals_are_saved_with_the_layer(generator):
    layer = build(generator)
    layer.update(torch.arange(5.0))
    assert torch.equal(layer.state_dict()["totals"].float(), torch.arange(5.0))


def test_the_pure_constraint_keeps_at_least_one_expert():
    gates = constrained(torch.zeros(1, 3), torch.tensor([9.0, 9.0, 0.0]), 1.0)
    torch.testing.assert_close(gates, torch.tensor([[0.0, 0.0, 1.0]]))


@pytest.mark.parametrize(("options", "message"), [
    ({"first_experts": 0}, "first_experts is 0"), ({"second_experts": 0}, "second_experts is 0"),
    ({"hidden_dim": 0}, "hidden_dim is 0"), ({"gate_hidden_dim": 0}, "gate_hidden_dim is 0"),
    ({"constrained_steps": -1}, "constrained_steps is -1"), ({"margin": 0.0}, "margin is 0.0"),
])
def test_refuses(generator, options, message):
    with pytest.raises(ValueError, match=message):
        build(generator, **options)
    with pytest.raises(ValueError, match="one sum of gates for each of 3 \\+ 2 experts"):
        build(generator).update(torch.zeros(3))


def test_flops_are_counted_map_by_map(generator):
    layer = DeepMixture(5, Config(first_experts=2, second_experts=3, hidden_dim=7, gate_hidden_dim=4), generator)
    maps = [(5, 4), (4, 2), (7, 4), (4, 3), *[(5, 7)] * 2, *[(7, 7)] * 3, (7, 5)]  # gates, experts of both, output
    assert layer.flops_per_token() == sum(2 * into * out for into, out in maps)
