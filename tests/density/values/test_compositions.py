"""Partial correlations of parts against regressions for every reference, and what closure alone brings about."""

import math

import numpy as np
import pytest
import torch

from mixwell.density.values.compositions import (
    Config,
    alr,
    closed,
    clr,
    example,
    ilr,
    ilr_basis,
    partial_correlations,
    residuals,
)

RNG = np.random.default_rng(0)
X = torch.tensor(np.exp(RNG.normal(size=(30, 5)) @ RNG.normal(size=(5, 5))))


def without(x, *parts):
    return [d for d in range(x.shape[1]) if d not in parts]


def leftover(target, given):
    """What least squares on `given` and a constant leaves."""
    design = np.column_stack([np.ones(len(given)), given])
    return target - design @ np.linalg.lstsq(design, target, rcond=None)[0]


def test_log_ratios_agree_with_loops():
    for n, row in enumerate(X.tolist()):
        logs = [math.log(v) for v in row]
        assert clr(X)[n].tolist() == pytest.approx([v - sum(logs) / 5 for v in logs])
        assert alr(X, 2)[n].tolist() == pytest.approx([logs[d] - logs[2] for d in (0, 1, 3, 4)])
        assert alr(X)[n].tolist() == pytest.approx([logs[d] - logs[4] for d in range(4)])
        for i in range(1, 5):  # geometric mean of the first i parts against the next
            balance = math.sqrt(i / (i + 1)) * (sum(logs[:i]) / i - logs[i])
            assert ilr(X)[n, i - 1].item() == pytest.approx(balance)


def test_the_basis_is_an_isometry():
    V = ilr_basis(6)
    torch.testing.assert_close(V.T @ V, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(V.sum(0), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(torch.cdist(ilr(X), ilr(X)), torch.cdist(clr(X), clr(X)))


@pytest.mark.parametrize("reference", range(5))
def test_every_reference_gives_the_same(reference):
    found, logs = partial_correlations(X), X.log().numpy()
    ratios = logs - logs[:, [reference]]
    left = residuals(X, found.precision_DD).numpy()
    for i in without(X, reference):
        alone = leftover(ratios[:, i], ratios[:, without(X, i, reference)])
        np.testing.assert_allclose(left[:, i], alone, atol=1e-9)
        assert found.variances_D[i].item() == pytest.approx(alone @ alone / 29, rel=1e-8)
        for j in without(X, i, reference):
            rest = ratios[:, without(X, i, j, reference)]
            pair = np.corrcoef(leftover(ratios[:, i], rest), leftover(ratios[:, j], rest))[0, 1]
            assert found.correlations_DD[i, j].item() == pytest.approx(pair, abs=1e-8)


def test_it_is_the_pseudo_inverse_of_the_clr_covariance():
    found = partial_correlations(X)
    inverse = np.linalg.pinv(np.cov(clr(X).numpy().T), rcond=1e-10)
    np.testing.assert_allclose(found.precision_DD.numpy(), inverse, rtol=1e-8, atol=1e-9)
    scale = np.sqrt(np.diag(inverse))
    np.testing.assert_allclose(found.correlations_DD - torch.eye(5),
                               -inverse / np.outer(scale, scale) + np.eye(5), atol=1e-8)
    assert (found.correlations_DD.abs() <= 1).all() and (found.correlations_DD < 0).any()


def test_the_sum_of_rows_and_factors_of_parts_change_nothing():
    scaled = X * torch.rand(30, 1, dtype=torch.float64) * torch.tensor([1e3, 1, 1e-2, 5, 7])
    for a, b in zip(partial_correlations(X), partial_correlations(scaled)):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("parts", [3, 8])
def test_independent_parts_of_equal_variance_have_what_closure_brings(parts):
    y = RNG.normal(size=(60, parts))
    y = (y - y.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(y.T))).T  # exactly white
    found = partial_correlations(torch.tensor(y).softmax(1)).correlations_DD
    expected = torch.full((parts, parts), 1 / (parts - 1), dtype=torch.float64).fill_diagonal_(1.0)
    torch.testing.assert_close(found, expected)


def test_gradient():
    x = X[:8, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: tuple(partial_correlations(v)), (x,), atol=1e-6)
    assert torch.autograd.gradcheck(lambda v: (clr(v), alr(v, 1), ilr(v)), (x,))


def test_zeros_are_replaced():
    x = torch.tensor([[0.0, 2.0, 2.0], [3.0, 0.0, 0.0], [1.0, 1.0, 2.0]])
    torch.testing.assert_close(closed(x, Config(zeros="replace")), torch.tensor(
        [[1 / 9, 4 / 9, 4 / 9], [7 / 9, 1 / 9, 1 / 9], [0.25, 0.25, 0.5]]))
    torch.testing.assert_close(closed(x, Config(zeros="replace", delta=0.01)), torch.tensor(
        [[0.01, 0.495, 0.495], [0.98, 0.01, 0.01], [0.25, 0.25, 0.5]]))
    torch.testing.assert_close(closed(x[2:], Config(zeros="replace")), closed(x[2:], Config()))
    holes = X.clone()
    holes[3, 1] = 0
    assert partial_correlations(holes, Config(zeros="replace")).correlations_DD.isfinite().all()


def test_same_bits_inputs_untouched_other_types():
    copy = X.clone()
    first, second, single = partial_correlations(X), partial_correlations(X), partial_correlations(X.float())
    assert all(torch.equal(a, b) for a, b in zip(first, second)) and torch.equal(X, copy)
    assert single.correlations_DD.dtype == torch.float32
    torch.testing.assert_close(single.correlations_DD.double(), first.correlations_DD, rtol=1e-4, atol=1e-4)
    counts = (X * 1000).ceil().long()
    torch.testing.assert_close(partial_correlations(counts).correlations_DD,
                               partial_correlations(counts.double()).correlations_DD)


def test_refusals():
    holes = X.clone()
    holes[2, 3] = 0
    with pytest.raises(ValueError, match=r"x\[2, 3\] is 0, whose logarithm is not finite \(1 zeros in all\); drop or"):
        partial_correlations(holes)
    with pytest.raises(ValueError, match="a row of zeros alone cannot be replaced"):
        partial_correlations(torch.zeros(9, 3), Config(zeros="replace"))
    with pytest.raises(ValueError, match=r"delta is 0.5; expected below 1 / D = 0.2"):
        partial_correlations(holes, Config(zeros="replace", delta=0.5))
    for x in (-X, X[0], X * math.nan, X[:, :1]):
        with pytest.raises(ValueError, match="two or more parts, none negative"):
            partial_correlations(x)
    for x in (X[:, :2], X[:5]):
        with pytest.raises(ValueError, match="three or more parts and more rows than parts"):
            partial_correlations(x)
    double = torch.cat([X, 2 * X[:, :1]], 1)
    with pytest.raises(ValueError, match="some parts are functions of others"):
        partial_correlations(double)
    with pytest.raises(ValueError, match="some parts are functions of others"):
        partial_correlations(X, Config(min_condition=0.9))
    with pytest.raises(ValueError, match="zeros is 'drop'; expected 'refuse' or 'replace'"):
        Config(zeros="drop")
    with pytest.raises(ValueError, match="delta is 0; expected above 0, or None"):
        Config(delta=0)
    with pytest.raises(ValueError, match="min_condition is -1; expected at least 0"):
        Config(min_condition=-1)


def test_example():
    found = partial_correlations(**example(torch.Generator().manual_seed(0)))
    assert found.correlations_DD.shape == (5, 5) and (found.variances_D > 0).all()
