import itertools

import pytest
import torch

from mixwell.density.circuits.integral import (
    RULES,
    Config,
    IntegralCircuit,
    compile_circuit,
    quadrature,
    train,
)
from mixwell.density.circuits.trees import TreeCircuit, children_first, chow_liu

PARENT = (1, -1, 1, 2)
NODES = torch.arange(4)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def circuit(leaf="categorical", states=3, seed=0):
    return TreeCircuit.random(PARENT, NODES, states, 2 if leaf == "categorical" else None, draws(seed))


def slow_likelihood(made, x):
    """Sum over every assignment of the hidden states."""
    total = 0.0
    for z in itertools.product(range(len(made.log_root_K)), repeat=len(made.parent)):
        p = made.log_root_K[z[1]].exp()
        for d, above in enumerate(made.parent):
            if above >= 0:
                p = p * made.log_edge_DKK[d, z[above], z[d]].exp()
        for f, d in enumerate(made.node_F.tolist()):
            if x[f].isnan():
                continue
            if made.log_table_FKV is not None:
                p = p * made.log_table_FKV[f, z[d], int(x[f])].exp()
            else:
                p = p * torch.distributions.Normal(made.mean_FK[f, z[d]], made.log_scale_FK[f, z[d]].exp()) \
                    .log_prob(x[f]).exp()
        total = total + p
    return total.log()


def rows(leaf, count=3):
    if leaf == "gaussian":
        return torch.randn(count, 4, generator=draws(1), dtype=torch.float64)
    return torch.randint(0, 2, (count, 4), generator=draws(1)).double()


@pytest.mark.parametrize("leaf", ["categorical", "gaussian"])
def test_tree_agrees_with_a_sum_over_all_states_forward_and_gradient(leaf):
    made, x = circuit(leaf), rows(leaf)
    x[0, 2] = torch.nan
    made.log_edge_DKK.requires_grad_()
    fast, slow = made.log_prob(x), torch.stack([slow_likelihood(made, r) for r in x])
    torch.testing.assert_close(fast, slow)
    one, two = (torch.autograd.grad(v.sum(), made.log_edge_DKK)[0] for v in (fast, slow))
    torch.testing.assert_close(one, two)


def test_several_features_may_hang_from_a_node():
    made = TreeCircuit.random((-1, 0), torch.tensor([0, 0, 1]), 2, 3, draws())
    x = torch.randint(0, 3, (4, 3), generator=draws(1)).double()

    def slow(row):
        p = 0.0
        for a, b in itertools.product(range(2), repeat=2):
            p += (made.log_root_K[a] + made.log_edge_DKK[1, a, b] + made.log_table_FKV[0, a, int(row[0])]
                  + made.log_table_FKV[1, a, int(row[1])] + made.log_table_FKV[2, b, int(row[2])]).exp()
        return p.log()

    torch.testing.assert_close(made.log_prob(x), torch.stack([slow(r) for r in x]))


@pytest.mark.parametrize("leaf", ["categorical", "gaussian"])
def test_em_never_lowers_the_likelihood_and_samples_teach_it(leaf):
    truth = circuit(leaf, 2, seed=3)
    x = truth.sample(300, draws(2))
    made, heights = circuit(leaf, 2, seed=5), []
    for _ in range(25):
        made, height = made.em_step(x, smoothing=1e-6)
        heights.append(height)
    assert min(b - a for a, b in itertools.pairwise(heights)) > -1e-6
    assert heights[-1] > float(truth.log_prob(x).mean()) - 0.02
    assert made.n_parameters() == 1 + 3 * 2 + 4 * 2 * (1 if leaf == "categorical" else 2)


def test_compiled_circuit_has_mass_one_at_any_number_of_points():
    grid = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
    for leaf_points, rule in itertools.product((2, 5, 9), RULES):
        model = IntegralCircuit(PARENT, Config(points=leaf_points, rule=rule, units=8), draws())
        with torch.no_grad():
            assert float(model(grid).exp().sum()) == pytest.approx(1, abs=1e-5)


def normal_chain(points, rule):
    """z_0 ~ N(0, 1), z_i ~ N(0.8 z_{i-1}, 0.6^2), x_i ~ N(z_i, 0.7^2), compiled on [-6, 6]."""
    z, weight = quadrature(rule, points, -6.0, 6.0)
    root = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    edge = torch.distributions.Normal(0.8 * z[:, None], 0.6).log_prob(z[None])
    return compile_circuit((-1, 0, 1), root, edge.expand(3, -1, -1), weight.log(), mean_FK=z.expand(3, -1),
                           log_scale_FK=torch.full((3, points), 0.7, dtype=torch.float64).log())


@pytest.mark.parametrize("rule", RULES)
def test_a_linear_gaussian_chain_converges_to_its_closed_form(rule):
    x = torch.randn(6, 3, generator=draws(), dtype=torch.float64)
    lag = (torch.arange(3)[:, None] - torch.arange(3)).abs()
    covariance = 0.8 ** lag.double() + 0.49 * torch.eye(3, dtype=torch.float64)  # stationary: 0.64 + 0.36 = 1
    exact = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance).log_prob(x)
    errors = [float((normal_chain(k, rule).log_prob(x) - exact).abs().max()) for k in (6, 12, 48)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-5


@pytest.mark.parametrize("leaf", ["categorical", "gaussian"])
def test_training_through_the_rule_lowers_the_loss(leaf):
    x = circuit(leaf, 2, seed=3).sample(200, draws()).float()
    model = IntegralCircuit(PARENT, Config(leaf=leaf, points=6, units=8), draws())
    losses = list(train(model, x, steps=40, batch=100, lr=0.02, generator=draws()))
    assert losses[-1] < losses[0] - 0.1
    finer = model.circuit(24, "legendre").log_prob(x).mean()
    assert float((finer - model(x).mean()).abs().detach()) < 0.2  # the same model, another rule


def test_two_points_give_the_circuit_of_two_states():
    model = IntegralCircuit((-1,), Config(points=2, units=4), draws()).double()
    made = model.circuit()
    p = (made.log_root_K.exp()[:, None] * made.log_table_FKV[0].exp()).sum(0)
    torch.testing.assert_close(model(torch.tensor([[0.0], [1.0]])), p.log())


@pytest.mark.parametrize("rule", RULES)
def test_rules_integrate_polynomials(rule):
    z, weight = quadrature(rule, 40, 0.0, 3.0)
    assert float(weight.sum()) == pytest.approx(3) and float((weight * z**2).sum()) == pytest.approx(9, rel=1e-3)


def test_chow_liu_finds_a_planted_chain():
    x = torch.zeros(2000, 4)
    x[:, 0] = (torch.rand(2000, generator=draws()) < 0.5).float()
    for a, b in ((0, 2), (2, 1), (1, 3)):
        flip = (torch.rand(2000, generator=draws(b)) < 0.1).float()
        x[:, b] = (x[:, a] - flip).abs()
    assert chow_liu(x, 2) == (-1, 2, 0, 1)


def test_refuses():
    with pytest.raises(ValueError, match="expected a tree with one root"):
        IntegralCircuit((1, 0, -1))
    with pytest.raises(ValueError, match="expected a tree with one root"):
        children_first((-1, -1))
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\); expected \(rows, 4\)"):
        circuit().log_prob(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="code the categories so"):
        circuit().log_prob(torch.full((1, 4), 2.0))
    for wrong in ({"rule": "simpson"}, {"leaf": "poisson"}, {"points": 1}, {"units": 3}, {"low": 2.0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**wrong)


def test_a_range_twice_as_wide_is_a_frequency_twice_as_high():
    """Fourier features see a latent number and their frequency as a product only."""
    def log_prob(**options):
        module = IntegralCircuit((-1, 0, 1), Config(points=5, units=4, low=0.0, **options), draws())
        return module(torch.randint(0, 2, (8, 3), generator=draws()).float())

    torch.testing.assert_close(log_prob(high=2.0, frequency=1.0), log_prob(high=1.0, frequency=2.0))
    assert not torch.allclose(log_prob(high=2.0, frequency=1.0), log_prob(high=1.0, frequency=1.0))


def test_as_many_categories_as_asked_for_share_the_mass():
    module = IntegralCircuit((-1, 0), Config(leaf="categorical", n_categories=3, points=4, units=4), draws())
    cells = torch.tensor(list(itertools.product((0.0, 1.0, 2.0), repeat=2)))
    torch.testing.assert_close(module(cells).exp().sum(), torch.tensor(1.0))
