"""Nested experts against a loop; the greedy assignment; the split of a budget."""

import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.nested import Config, NestedExperts, assign, capacities
from mixwell.experts.layers.swiglu import Config as DenseConfig
from mixwell.experts.layers.swiglu import SwiGLU
from tests.experts.layers._loops import enlarged, same_forward_and_gradient, swiglu, tokens


def greedy(scores, shares, counted):
    """Algorithm 1 for one row: largest expert first, best free token first."""
    level, free = [0] * len(scores), [t for t in range(len(scores)) if counted[t]]
    total = len(free)
    for j in range(len(shares) - 1, 0, -1):
        best = sorted(free, key=lambda t: -float(scores[t, j]))[: int(shares[j] * total + 1e-9)]
        for t in best:
            level[t] = j
            free.remove(t)
    return level


@pytest.mark.parametrize("shape", [None, (3, 4)])
def test_agrees_with_a_loop_forward_and_gradient(generator, shape):
    layer = enlarged(NestedExperts(8, Config(hidden_dim=5, levels=3, budget=0.6), generator), 10)
    with torch.no_grad():
        layer.alpha.fill_(0.7)
    x = tokens(generator, 12, 8)
    r = torch.stack([(layer.gate.weight @ z + layer.gate.bias).softmax(0) for z in x])
    length = 12 if shape is None else 4
    levels = [v for row in r.detach().split(length) for v in greedy(row, layer.capacities, [True] * length)]
    expected = []
    for t, j in enumerate(levels):
        d = (2, 4, 8)[j]
        y = swiglu(x[t, :d], layer.gate_up_proj[:, :d], layer.down_proj[:d])
        expected.append((0.7 * r[t, j] + 1) * torch.cat([y, torch.zeros(8 - d, dtype=torch.float64)]))
    mixed = layer(x, Context(batch_shape=shape))
    assert mixed.routing.indices_TK.flatten().tolist() == levels and len(set(levels)) == 3
    leaves = [x, *(p for n, p in layer.named_parameters() if n != "alpha")]
    same_forward_and_gradient(mixed.y_TD, torch.stack(expected), leaves, generator)


def test_all_of_the_budget_is_the_dense_block(generator):
    layer = NestedExperts(8, Config(hidden_dim=5, budget=1.0, levels=4), generator)
    dense = SwiGLU(8, DenseConfig(hidden_dim=5), generator)
    dense.load_state_dict({n: p for n, p in layer.state_dict().items() if n.endswith("proj")})
    x = torch.randn(9, 8, generator=generator)
    torch.testing.assert_close(layer(x, Context()).y_TD, dense(x, Context()).y_TD)
    assert layer.flops_per_token() - 2 * 8 * 4 == dense.flops_per_token()


@pytest.mark.parametrize("levels, beta, delta", [(2, 10.0, 2.0), (4, 10.0, 2.0), (4, 1.0, 3.0), (5, 0.3, 1.5)])
@pytest.mark.parametrize("budget", [0.5, 0.55, 0.9])
def test_capacities_solve_the_papers_problem(levels, beta, delta, budget):
    c = capacities(levels, budget, beta, delta)
    costs = [2.0 ** (j + 1 - levels) for j in range(levels)]
    assert sum(c) == pytest.approx(1) and sum(a * b for a, b in zip(c, costs)) == pytest.approx(budget)
    if min(c) > 0 and levels > 2:  # no feasible direction improves the objective
        gradient = torch.tensor([delta**j - beta * (math.log(v) + 1) for j, v in enumerate(c)], dtype=torch.float64)
        constraints = torch.tensor([[1.0] * levels, costs], dtype=torch.float64)
        kernel = torch.linalg.svd(constraints)[2][2:]
        assert (kernel @ gradient).abs().max() < 1e-6 * (1 + gradient.abs().max())


def test_one_model_serves_several_budgets(generator):
    layer = NestedExperts(8, Config(hidden_dim=5, levels=3, budget=1.0), generator)
    x = torch.randn(40, 8, generator=generator)
    used = []
    for budget in (0.25, 0.5, 0.75, 1.0):
        layer.set_budget(budget)
        load = layer(x, Context()).routing.load_E().tolist()
        used.append(sum(n * c for n, c in zip(load, (0.25, 0.5, 1.0))) / 40)
        assert used[-1] <= budget + 1e-9 and used[-1] > budget - 2 / 40
    assert used == sorted(used)


def test_padding_takes_no_capacity():
    scores = torch.tensor([[[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]]])
    mask = torch.tensor([[False, True, True, False]])
    assert assign(scores, [0.5, 0.5], mask).tolist() == [[0, 1, 0, 0]]


def test_the_router_learns_through_alpha(generator):
    layer = NestedExperts(8, Config(hidden_dim=5, levels=3), generator)
    x = torch.randn(9, 8, generator=generator)
    layer(x, Context()).y_TD.square().sum().backward()
    assert layer(x[:0], Context()).y_TD.shape == (0, 8)
    assert layer.alpha.grad.abs() > 0


@pytest.mark.parametrize("options, message", [
    ({"budget": 0.05}, "can take 0.125 to 1"), ({"beta": 0.0}, "above 0 and above 1"), ({"levels": 0}, "at least 1"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(hidden_dim=5, **options)
    with pytest.raises(ValueError, match="halved 3 times"):
        NestedExperts(6, Config(hidden_dim=5))


def test_the_layer_takes_its_capacities_from_beta_and_delta(generator):
    def shares(**options):
        return NestedExperts(8, Config(hidden_dim=5, levels=3, budget=0.6, **options), generator).capacities

    assert shares(delta=3.0) == capacities(3, 0.6, delta=3.0) != shares()
    assert shares(beta=1.0) == capacities(3, 0.6, beta=1.0) != shares()
    assert shares(beta=1.0, delta=4.0)[-1] > shares(beta=1.0, delta=1.5)[-1], "a steeper reward favours the largest"
