import itertools

import numpy as np
import pytest
import torch

from mixwell.density.circuits.squared import Config, SquaredCircuit, spline_basis, spline_integrals, train

LEAVES, KINDS, STRUCTURES = ("gaussian", "categorical", "spline"), ("subtractive", "squared", "additive"), \
    ("mixture", "tree")


def made(dim=2, seed=0, dtype=torch.float64, **options):
    model = SquaredCircuit(dim, Config(**{"n_components": 3, **options}), torch.Generator().manual_seed(seed), dtype)
    if model.config.kind == "subtractive":
        with torch.no_grad():  # signs that differ, as after training
            for value in (model.root_K, *model.sums, *([] if model.config.leaf == "gaussian" else [model.table_DKV])):
                value.sub_(0.4).mul_(2)
    return model


def rows(leaf, count=5, dim=2):
    draws = torch.Generator().manual_seed(1)
    if leaf == "categorical":
        return torch.randint(0, 2, (count, dim), generator=draws).double()
    return torch.rand(count, dim, generator=draws, dtype=torch.float64)


def leaf_value(model, d, k, x):
    config = model.config
    positive = config.kind != "subtractive"
    if config.leaf == "gaussian":
        scale = model.log_scale_DK[d, k].exp()
        return torch.exp(-0.5 * ((x - model.mean_DK[d, k]) / scale) ** 2) / scale / np.sqrt(2 * np.pi)
    table = model.table_DKV[d, k].exp() if positive else model.table_DKV[d, k]
    return table[int(x)] if config.leaf == "categorical" else (spline_basis(x, config.n_basis, 0.0, 1.0) * table).sum()


def slow_density(model, x):
    """Unnormalised c(x)^2 or c(x) of one row, by loops over components and regions."""
    config, K = model.config, model.config.n_components
    positive = config.kind != "subtractive"
    regions = [[leaf_value(model, d, k, x[d]) for k in range(K)] for d in range(model.dim)]
    if config.structure == "mixture":
        top = [torch.stack([regions[d][k] for d in range(model.dim)]).prod() for k in range(K)]
    else:
        for weight in model.sums:
            left, right, *regions = regions
            u = weight.exp() if positive else weight
            regions.append([sum(u[o, k] * left[k] * right[k] for k in range(K)) for o in range(K)])
        top = regions[0]
    root = model.root_K.exp() if positive else model.root_K
    c = sum(root[k] * top[k] for k in range(K))
    return c if config.kind == "additive" else c**2


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_agrees_with_a_loop_forward_and_gradient(leaf, kind, structure):
    model, x = made(3, leaf=leaf, kind=kind, structure=structure), rows(leaf, 3, 3)
    fast = model(x) + model.log_partition()
    slow = torch.stack([slow_density(model, r).log() for r in x])
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    parameters = list(model.parameters())
    weights = torch.arange(1.0, 4.0, dtype=torch.float64)
    for one, two in zip(torch.autograd.grad((fast * weights).sum(), parameters, allow_unused=True),
                        torch.autograd.grad((slow * weights).sum(), parameters, allow_unused=True)):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-9)


def box(leaf, dim=2):
    """Points and weights that integrate over the leaf's support."""
    if leaf == "categorical":
        grid = torch.tensor(list(itertools.product([0.0, 1.0], repeat=dim)), dtype=torch.float64)
        return grid, torch.ones(len(grid), dtype=torch.float64)
    low, high, n = (-12.0, 12.0, 400) if leaf == "gaussian" else (0.0, 1.0, 14 * 5)
    if leaf == "gaussian":
        node, weight = np.polynomial.legendre.leggauss(n)
        node, weight = (node + 1) / 2 * (high - low) + low, weight * (high - low) / 2
    else:  # composite: the pieces of a spline are polynomials
        base, share = np.polynomial.legendre.leggauss(5)
        node = ((np.arange(14)[:, None] + (base + 1) / 2) / 14).ravel()
        weight = np.tile(share / 28, 14)
    grid = torch.from_numpy(np.stack(np.meshgrid(node, node, indexing="ij"), -1).reshape(-1, 2))
    return grid, torch.from_numpy(np.outer(weight, weight).ravel())


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_partition_function_equals_quadrature(leaf, kind, structure):
    model = made(leaf=leaf, kind=kind, structure=structure, seed=3)
    grid, weight = box(leaf)
    with torch.no_grad():
        mass = (model(grid).exp() * weight).sum()
    assert float(mass) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("kind", ["subtractive", "additive"])
def test_missing_columns_are_integrated_out(leaf, kind):
    model = made(leaf=leaf, kind=kind, structure="tree", seed=2)
    grid, weight = box(leaf)
    column = grid[:: int(len(grid) ** 0.5)][:4, 0] if leaf != "categorical" else torch.tensor([0.0, 1.0]).double()
    with torch.no_grad():
        marginal = model(torch.stack([column, torch.full_like(column, torch.nan)], 1)).exp()
        for value, found in zip(column, marginal):
            mine = grid[:, 0] == value
            whole = (model(grid[mine]).exp() * weight[mine]).sum() / weight[mine].sum()
            length = {"gaussian": 24.0, "spline": 1.0, "categorical": 2.0}[leaf]
            assert float(found) == pytest.approx(float(whole) * length, rel=1e-6)
        assert float(model(torch.full((1, 2), torch.nan))) == pytest.approx(0, abs=1e-9)


def test_subtracting_two_blobs_makes_a_ring_that_adding_cannot():
    """(N(0, a) - t N(0, b))^2 vanishes on purpose at the centre; two added Gaussians cannot have a hole."""
    model = made(n_components=2)
    with torch.no_grad():
        model.mean_DK.zero_()
        model.log_scale_DK.copy_(torch.tensor([1.0, 0.6]).log().expand(2, 2))
        model.root_K.copy_(torch.tensor([1.0, -0.36]))
    log, sign = model.amplitude(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.5, 0.0]], dtype=torch.float64))
    assert log[0] < log[2] - 10 and sign[1] > 0
    draws = torch.Generator().manual_seed(0)
    angle = 2 * np.pi * torch.rand(400, generator=draws, dtype=torch.float64)
    radius = 1 + 0.1 * torch.randn(400, generator=draws, dtype=torch.float64)
    ring = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    found = {}
    for kind in ("subtractive", "additive"):
        start = made(n_components=2, kind=kind)
        with torch.no_grad():
            start.mean_DK.copy_(0.05 * start.mean_DK)
            start.log_scale_DK[:, 0], start.log_scale_DK[:, 1] = 0.0, -0.4
            start.root_K.copy_(torch.tensor([1.0, -0.4 if kind == "subtractive" else 0.5]))
        found[kind] = list(train(start, ring, steps=150, lr=0.03, generator=draws))[-1]
    assert found["subtractive"] < found["additive"] - 0.3


def test_one_gaussian_component_is_the_normal_with_half_the_variance():
    model = made(1, n_components=1)
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    normal = torch.distributions.Normal(model.mean_DK[0, 0], model.log_scale_DK[0, 0].exp() / 2**0.5)
    torch.testing.assert_close(model(x), normal.log_prob(x[:, 0]))
    plain = made(1, n_components=1, kind="additive")
    torch.testing.assert_close(plain(x), torch.distributions.Normal(plain.mean_DK[0, 0], 1.0).log_prob(x[:, 0]))


def test_spline_integrals_and_partition_of_unity():
    mass, gram = spline_integrals(6, 0.0, 2.0)
    x = torch.linspace(0, 2, 20001, dtype=torch.float64)
    basis = spline_basis(x, 6, 0.0, 2.0)
    torch.testing.assert_close(basis.sum(-1), torch.ones_like(x))
    torch.testing.assert_close(torch.trapezoid(basis, x, dim=0), mass, atol=1e-7, rtol=0)
    products = basis[:, :, None] * basis[:, None, :]
    torch.testing.assert_close(torch.trapezoid(products, x, dim=0), gram, atol=1e-7, rtol=0)


@pytest.mark.parametrize("leaf", LEAVES)
def test_samples_follow_the_density(leaf):
    model = made(leaf=leaf, n_components=2, seed=5)
    draws = model.sample(600, torch.Generator().manual_seed(0), points=200)
    grid, weight = box(leaf)
    with torch.no_grad():
        p = model(grid).exp() * weight
    torch.testing.assert_close(draws.mean(0), (p[:, None] * grid).sum(0), atol=0.12, rtol=0)
    torch.testing.assert_close(draws.var(0), (p[:, None] * grid**2).sum(0) - (p[:, None] * grid).sum(0) ** 2,
                               atol=0.15, rtol=0.15)


def test_extreme_rows_stay_finite_and_single_agrees_with_double():
    model = made(n_components=2)
    with torch.no_grad():
        model.mean_DK.copy_(torch.tensor([[0.0, 60.0], [0.0, 60.0]]))
    assert bool(model(torch.tensor([[0.0, 60.0], [500.0, -500.0]], dtype=torch.float64)).isfinite().all())
    x = rows("gaussian")
    torch.testing.assert_close(made(dtype=torch.float32)(x.float()),
                               made(dtype=torch.float32).double()(x).float(), atol=1e-4, rtol=1e-4)


def test_starts_on_rows_and_batches():
    x = 5 + 0.1 * rows("gaussian", 50)
    model = made()
    model.start_at(x, torch.Generator().manual_seed(0))
    assert float(model.mean_DK.detach().min()) > 4.9 and float(model.log_scale_DK.detach().max()) < -3
    losses = list(train(model, x, steps=5, lr=0.01, generator=torch.Generator().manual_seed(0), batch=16))
    assert len(losses) == 5 and all(np.isfinite(losses))
    with pytest.raises(ValueError, match="needs gaussian leaves"):
        made(leaf="spline").start_at(x)


def test_refuses():
    with pytest.raises(ValueError, match=r"x has shape \(5, 3\); expected \(rows, 2\)"):
        made()(rows("gaussian", 5, 3))
    with pytest.raises(ValueError, match=r"x leaves \[0.0, 1.0\]"):
        made(leaf="spline")(torch.full((1, 2), 1.5))
    with pytest.raises(ValueError, match=r"outside 0, \.\.\., 1"):
        made(leaf="categorical")(torch.full((1, 2), 2.0))
    for wrong in ({"kind": "cubed"}, {"leaf": "vine"}, {"structure": "ring"}, {"n_components": 0}, {"low": 2.0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**wrong)
    with pytest.raises(ValueError, match="dim is 0"):
        made(0)


def test_splines_fill_the_range_they_are_given():
    config = Config(leaf="spline", n_basis=6, low=-1.0, high=3.0, n_components=3)
    module = SquaredCircuit(1, config, torch.Generator().manual_seed(0), torch.float64)
    assert module.table_DKV.shape == (1, 3, 6)
    middle = (torch.arange(4000, dtype=torch.float64) + 0.5) / 1000 - 1
    assert float(module(middle[:, None]).exp().mean() * 4) == pytest.approx(1, abs=1e-6)


def test_as_many_categories_as_asked_for_share_the_mass():
    config = Config(leaf="categorical", n_categories=3, n_components=2)
    module = SquaredCircuit(2, config, torch.Generator().manual_seed(0), torch.float64)
    cells = torch.tensor(list(itertools.product((0.0, 1.0, 2.0), repeat=2)), dtype=torch.float64)
    assert float(module(cells).exp().sum()) == pytest.approx(1)
