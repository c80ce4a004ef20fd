"""Guided paths against enumeration on trees of tables, joint normals on chains, quadrature, and a grid filter."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm

from mixwell.density.processes.guided import (
    Config,
    NormalStep,
    Quadratic,
    Scores,
    Table,
    Tree,
    averaged,
    example,
    filter_back,
    guided_paths,
    linear_step,
    seen_linearly,
)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def exact(values):
    return torch.tensor(values, dtype=torch.float64)


PARENTS = [-1, 0, 1, 1, 0, 4]
TABLES = torch.rand(6, 3, 3, generator=draws(), dtype=torch.float64).add(0.05)
TABLES /= TABLES.sum(2, keepdim=True)
SEEN = torch.rand(6, 3, generator=draws(1), dtype=torch.float64)


def table_tree(simpler=None):
    kernels = [None] + [Table(TABLES[v], None if simpler is None else simpler[v]) for v in range(1, 6)]
    return Tree(PARENTS, kernels, [Scores(SEEN[v].log()) if v in (0, 2, 3, 5) else None for v in range(6)])


def enumerated():
    """The likelihood from root state 1, and every node's posterior (6, 3), by all 3^5 paths."""
    total, marginal = 0.0, np.zeros((6, 3))
    for path in itertools.product(range(3), repeat=5):
        x = (1, *path)
        p = float(SEEN[0, 1])
        for v in range(1, 6):
            p *= float(TABLES[v, x[PARENTS[v]], x[v]]) * (float(SEEN[v, x[v]]) if v in (2, 3, 5) else 1.0)
        total += p
        for v in range(6):
            marginal[v, x[v]] += p
    return total, marginal / total


def test_exact_tables_have_constant_weights_and_posterior_states():
    total, marginal = enumerated()
    found = guided_paths(table_tree(), torch.tensor(1), draws(2), Config(paths=20_000))
    assert float(found.log_weights_N.abs().max()) < 1e-12
    assert float(found.log_likelihood) == pytest.approx(math.log(total), abs=1e-12)
    assert float(found.effective) == pytest.approx(20_000)
    for v in range(6):
        share = np.bincount(found.states[v].numpy(), minlength=3) / 20_000
        np.testing.assert_allclose(share, marginal[v], atol=0.015)


@pytest.mark.parametrize("options", [{}, {"resample": 0.9}, {"proposal": "forward"},
                                     {"proposal": "forward", "resample": 1.0}])
def test_other_proposals_are_unbiased(options):
    total, marginal = enumerated()
    simpler = 0.5 * TABLES + 0.5 / 3
    config = Config(paths=2000, **options)
    runs = [guided_paths(table_tree(simpler), torch.tensor(1), draws(seed), config) for seed in range(10)]
    ratio = np.array([math.exp(float(r.log_likelihood)) for r in runs]) / total
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 10**0.5 + 1e-3
    share = np.mean([[float(r.log_weights_N.softmax(0)[r.states[3] == s].sum()) for s in range(3)] for r in runs], 0)
    np.testing.assert_allclose(share, marginal[3], atol=0.03)


def test_guidance_wastes_fewer_paths():
    simpler = 0.5 * TABLES + 0.5 / 3
    guided, forward = (guided_paths(table_tree(simpler), torch.tensor(1), draws(), Config(paths=2000, proposal=p))
                       for p in ("guided", "forward"))
    assert guided.effective > 1.5 * forward.effective


B = torch.tensor([[0.9, 0.2], [-0.1, 0.8]], dtype=torch.float64)
OFFSET = torch.tensor([0.3, -0.2], dtype=torch.float64)
Q = torch.tensor([[0.5, 0.1], [0.1, 0.3]], dtype=torch.float64)
H, NOISE = torch.tensor([[1.0, 0.5]], dtype=torch.float64), exact([[0.2]])
Y = torch.tensor([[0.7], [1.5]], dtype=torch.float64)
ROOT = torch.tensor([0.5, -1.0], dtype=torch.float64)


def joint():
    """Mean and covariance of (x_1, .., x_4) from ROOT, node by node."""
    mean, cov, at = [], np.zeros((8, 8)), ROOT.numpy()
    for t in range(4):
        at = B.numpy() @ at + OFFSET.numpy()
        mean.append(at)
        before = cov[2 * t - 2 : 2 * t, :] if t else np.zeros((2, 8))
        cov[2 * t : 2 * t + 2, :] = B.numpy() @ before
        cov[:, 2 * t : 2 * t + 2] = cov[2 * t : 2 * t + 2, :].T
        own = B.numpy() @ cov[2 * t - 2 : 2 * t, 2 * t - 2 : 2 * t] @ B.numpy().T if t else 0
        cov[2 * t : 2 * t + 2, 2 * t : 2 * t + 2] = own + Q.numpy()
    return np.concatenate(mean), cov


def test_a_linear_chain_seen_in_part_is_the_joint_normal():
    """Half of the state is seen, twice: precisions of messages are singular."""
    step = linear_step(B, OFFSET, Q)
    seen = [seen_linearly(y, H, NOISE) for y in Y]
    tree = Tree([-1, 0, 1, 2, 3], [None, step, step, step, step], [None, None, seen[0], None, seen[1]])
    found = guided_paths(tree, ROOT, draws(), Config(paths=20_000))
    mean, cov = joint()
    G = np.zeros((2, 8))
    G[0, 2:4] = G[1, 6:8] = H.numpy()
    spread = G @ cov @ G.T + 0.2 * np.eye(2)
    exact = multivariate_normal.logpdf(Y[:, 0].numpy(), G @ mean, spread)
    assert float(found.log_likelihood) == pytest.approx(exact, abs=1e-10)
    assert float(found.log_weights_N.abs().max()) < 1e-10
    gain = np.linalg.solve(spread, G @ cov).T
    x = torch.cat(found.states[1:], 1).numpy()
    np.testing.assert_allclose(x.mean(0), mean + gain @ (Y[:, 0].numpy() - G @ mean), atol=0.03)
    np.testing.assert_allclose(np.cov(x.T), cov - gain @ G @ cov, atol=0.03)


def test_messages_are_integrals():
    h = Quadratic(exact(0.3), exact([0.7]), exact([[1.9]]))
    step = linear_step(exact([[1.4]]), exact([0.6]), exact([[0.8]]))
    pulled = step.pull(h).fuse(h)
    for x in (-1.0, 0.4, 2.0):
        value, _ = quad(lambda y, x=x: norm.pdf(y, 1.4 * x + 0.6, 0.8**0.5) * math.exp(0.3 + 0.7 * y - 0.95 * y * y),
                        -12, 12)
        own = 0.3 + 0.7 * x - 0.95 * x * x
        assert float(pulled.log_at(exact([[x]]))) == pytest.approx(math.log(value) + own, abs=1e-8)
    flat = Quadratic(exact(0.3), torch.zeros(1).double(), torch.zeros(1, 1).double())
    assert float(averaged(flat, Q[:1, :1])[0].c) == pytest.approx(0.3)


def curved(surrogate=None):
    """x' = x + 0.3 sin x + noise, five steps, seen at the third and the last."""
    one = torch.eye(1, dtype=torch.float64)
    step = NormalStep(lambda x: x + 0.3 * x.sin(), 0.25 * one, one, torch.zeros(1, dtype=torch.float64), surrogate)
    seen = {3: seen_linearly(exact([2.0]), one, 0.04 * one),
            5: seen_linearly(exact([4.0]), one, 0.04 * one)}
    return Tree([-1, 0, 1, 2, 3, 4], [None] + [step] * 5, [seen.get(v) for v in range(6)])


def on_a_grid():
    grid, width = np.linspace(-6, 10, 641), 16 / 640
    mean = grid + 0.3 * np.sin(grid)
    mass = norm.pdf(grid, 0.2 + 0.3 * math.sin(0.2), 0.5)
    for t in range(1, 6):
        mass = width * norm.pdf(grid[:, None], mean, 0.5) @ mass if t > 1 else mass
        mass = mass * norm.pdf({3: 2.0, 5: 4.0}[t], grid, 0.2) if t in (3, 5) else mass
    return math.log(mass.sum() * width)


@pytest.mark.parametrize("wider", [None, 0.5])
def test_steps_that_are_not_linear_keep_the_likelihood(wider):
    root = exact([0.2])
    tree = curved(None if wider is None else exact([[wider]]))
    runs = [guided_paths(tree, root, draws(seed), Config(paths=2000, resample=0.5)) for seed in range(8)]
    total = on_a_grid()
    ratio = np.exp([float(r.log_likelihood) - total for r in runs])
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 8**0.5 + 0.01
    plain = guided_paths(tree, root, draws(), Config(paths=4000, proposal="forward"))
    guided = guided_paths(tree, root, draws(), Config(paths=4000))
    assert guided.effective > 4 * plain.effective


def test_branches_that_see_nothing_are_drawn_freely():
    step = Table(TABLES[1])
    tree = Tree([-1, 0, 0], [None, step, step], [None, Scores(SEEN[2].log()), None])
    found = guided_paths(tree, torch.tensor(0), draws(), Config(paths=10_000))
    share = np.bincount(found.states[2].numpy(), minlength=3) / 10_000
    np.testing.assert_allclose(share, TABLES[1, 0], atol=0.02)
    assert filter_back(tree)[0][2] is None


def test_refuses():
    step, seen = Table(TABLES[1]), Scores(SEEN[2].log())
    for parents, kernels, likelihoods, words in (
            ([-1, 1], [None, step], [None, seen], "the parent of node 1 is 1"),
            ([-1, 0], [None, None], [None, seen], "node 1 has no kernel"),
            ([-1, 0], [None, step], [None, None], "no node has a likelihood"),
            ([], [], [], "no node has a likelihood"),
            ([-1, 0], [None], [None, seen], "lengths")):
        with pytest.raises(ValueError, match=words):
            Tree(parents, kernels, likelihoods)
    never = Scores(torch.tensor([-math.inf] * 3).double())
    for proposal, words in (("forward", "every path has weight zero at node 1"), ("guided", "cannot lead to what")):
        with pytest.raises(ValueError, match=words):
            guided_paths(Tree([-1, 0], [None, step], [None, never]), torch.tensor(0), draws(),
                         Config(proposal=proposal, paths=10))
    for wrong in ({"paths": 0}, {"resample": 2.0}, {"proposal": "backward"}):
        with pytest.raises(ValueError, match="expected"):
            Config(**wrong)


def test_messages_of_other_kinds_need_no_hash():
    class Plain(Scores):
        __hash__ = None

    step, seen = Table(TABLES[0]), SEEN[0].log()
    found = [guided_paths(Tree([-1, 0], [None, step], [None, kind(seen)]), torch.tensor(0), draws(), Config(paths=5))
             for kind in (Plain, Scores)]
    assert found[0].log_likelihood == found[1].log_likelihood


def test_example_runs():
    assert guided_paths(**example(draws())).log_likelihood < 0
