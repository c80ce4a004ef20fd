import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime
from sklearn.metrics import adjusted_rand_score

from mixwell.density.clustering.likelihood_sdp import Config, LikelihoodSDP, example, objective, pair_covariances, solve

RNG = np.random.default_rng(0)
X = np.vstack([RNG.normal(size=(8, 2)) * [2, 0.3], RNG.normal(size=(8, 2)) * [0.3, 2] + [5, 0]])
LABELS = np.repeat([0, 1], 8)


def white(cov):
    return np.stack([np.linalg.solve(np.linalg.cholesky(c), X.T).T for c in cov]), np.linalg.slogdet(cov)[1]


COV = np.stack([np.diag([4.0, 0.1]), np.diag([0.1, 4.0])])


def costs(cov):
    """D_k / 2 + log|S_k| J by loops over pairs."""
    found = np.zeros((len(cov), 16, 16))
    for k, c in enumerate(cov):
        for i in range(16):
            for j in range(16):
                gap = X[i] - X[j]
                found[k, i, j] = gap @ np.linalg.solve(c, gap) / 2 + np.log(np.linalg.det(c))
    return found


def test_objective_and_gradient_agree_with_loops():
    u = RNG.uniform(size=(2, 16, 3))
    value, slope = objective(u, *white(COV))
    assert value == pytest.approx(sum(0.5 * (c * (v @ v.T)).sum() for c, v in zip(costs(COV), u)))
    numeric = approx_fprime(u.ravel(), lambda f: objective(f.reshape(u.shape), *white(COV))[0], 1e-7)
    np.testing.assert_allclose(slope.ravel(), numeric, rtol=1e-4, atol=1e-3)


def test_at_a_partition_the_objective_is_the_profile_likelihood_without_centres():
    u = np.zeros((2, 16, 2))
    total = 0.0
    for k in range(2):
        mine = X[k == LABELS]
        u[k, k == LABELS, 0] = len(mine) ** -0.5
        gap = mine - mine.mean(0)
        total += 0.5 * (np.einsum("nd,de,ne->", gap, np.linalg.inv(COV[k]), gap)
                        + len(mine) * np.linalg.slogdet(COV[k])[1])
        np.testing.assert_allclose(pair_covariances(u, X)[k], np.cov(mine.T, bias=True))
    assert objective(u, *white(COV))[0] == pytest.approx(total)


def slow_program(cost, steps=1500, rho=0.3):
    """The convex program by alternating projections with prices (ADMM), for its optimal value."""
    K, N, _ = cost.shape
    z = np.stack([np.eye(N) / N] * K)
    psd, positive, dual_a, dual_b = z, z, np.zeros_like(z), np.zeros_like(z)
    cost = cost / np.abs(cost).max()
    for _ in range(steps):
        free = (psd - dual_a + positive - dual_b) / 2 - cost / (2 * rho)
        traces, rows = np.trace(free, axis1=1, axis2=2), free.sum((0, 2)) - 1
        s = (rows.sum() - (traces - 1).sum()) / (K * (N - 1))
        t = (traces - 1 - s) / N
        y = (rows - t.sum()) * 2 / (K * N) - s / N
        z = free - (y[:, None] + y)[None] / 2 - t[:, None, None] * np.eye(N)
        values, vectors = np.linalg.eigh(z + dual_a)
        psd = (vectors * np.maximum(values, 0)[:, None]) @ vectors.transpose(0, 2, 1)
        positive = np.maximum(z + dual_b, 0)
        dual_a, dual_b = dual_a + z - psd, dual_b + z - positive
    return z


def test_low_rank_factors_reach_the_semidefinite_optimum():
    cost = costs(COV)
    exact = slow_program(cost)
    start = RNG.uniform(0, 0.3, (2, 16, 3))
    u = solve(*white(COV), 1.0, start, Config(multiplier_steps=20, solver_steps=200))
    z = u @ u.transpose(0, 2, 1)
    np.testing.assert_allclose(z.sum((0, 2)), 1, atol=2e-3)
    np.testing.assert_allclose(np.trace(z, axis1=1, axis2=2), 1, atol=2e-3)
    assert (u >= 0).all()
    found, best = (0.5 * (cost * v).sum() for v in (z, exact))
    assert found == pytest.approx(best, rel=0.02)
    assert adjusted_rand_score(z.sum(2).argmax(0), exact.sum(2).argmax(0)) == 1


@pytest.mark.parametrize("rank", [2, 3])
def test_crossed_cigars_are_told_apart_where_the_first_relaxation_errs(rank):
    rng = np.random.default_rng(3)
    x = np.vstack([rng.normal(size=(20, 2)) * [4, 0.2], rng.normal(size=(20, 2)) * [0.2, 4] + [1.5, 3]])
    labels = np.repeat([0, 1], 20)
    found = LikelihoodSDP(n_clusters=2, rank=rank, random_state=0).fit(x)
    first, last = (adjusted_rand_score(labels, v) for v in (found.first_labels_, found.labels_))
    assert last > 0.8 > first
    np.testing.assert_allclose(found.memberships_.sum(1), 1, atol=0.02)


def test_no_adjustment_is_k_means_relaxation_and_one_cluster_is_the_covariance():
    found = LikelihoodSDP(n_clusters=2, max_iter=0, random_state=0).fit(X)
    np.testing.assert_array_equal(found.labels_, found.first_labels_)
    one = LikelihoodSDP(n_clusters=1, random_state=0, reg_covar=1e-9).fit(X)
    np.testing.assert_allclose(one.covariances_[0], np.cov(X.T, bias=True), rtol=0.02, atol=0.02)
    assert (one.labels_ == 0).all()


def test_neither_seed_nor_rank_changes_clear_clusters():
    labels = [LikelihoodSDP(n_clusters=2, rank=s + 1, random_state=s).fit(X).labels_ for s in range(3)]
    assert all(adjusted_rand_score(LABELS, v) == 1 for v in labels)


def test_refuses():
    with pytest.raises(ValueError, match="3 rows for 4 clusters"):
        LikelihoodSDP(n_clusters=4).fit(X[:3])
    for wrong in ({"rank": 0}, {"reg_covar": 0.0}, {"max_iter": -1}):
        with pytest.raises(ValueError, match="expected"):
            LikelihoodSDP(**wrong).fit(X)


def test_example_runs():
    given = example(torch.Generator().manual_seed(0))
    assert adjusted_rand_score(np.repeat([0, 1], 20), given["estimator"].fit(given["X"]).labels_) == 1
