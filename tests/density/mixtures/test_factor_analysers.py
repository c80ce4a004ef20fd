"""Mixture of factor analysers: an EM step in loops, recovery with few parameters, the full-rank limit."""

import numpy as np
import pytest
import torch

from mixwell.density import GaussianMixture, MixtureOfFactorAnalysers
from mixwell.density.mixtures.factor_analysers import principal_factors
from tests.density.mixtures._tools import continued, softmax

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def factor_data(n=600, d=6, q=2, seed=0):
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(d, q))
    noise = 0.3 + rng.random(d)
    return rng.normal(size=(n, q)) @ loadings.T + rng.normal(size=(n, d)) * np.sqrt(noise), loadings, noise


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("added", [0.0, 0.2])
def test_a_step_agrees_with_loops(tied, added):
    x = np.concatenate([factor_data(80)[0], factor_data(120, seed=1)[0] + 3])
    model = MixtureOfFactorAnalysers(2, n_factors=2, tied_noise=tied, max_iter=2, tol=0, reg_covar=added,
                                     random_state=0).fit(x)
    w, m = model.weights_.copy(), model.means_.copy()
    L, psi = model.loadings_.copy(), model.noise_variances_.copy()
    joint = np.empty((200, 2))
    for k in range(2):
        sigma = L[k] @ L[k].T + np.diag(psi[k])
        np.testing.assert_allclose(model.covariances_[k], sigma, rtol=1e-9, atol=1e-12)
        for n, row in enumerate(x):
            diff = row - m[k]
            joint[n, k] = np.log(w[k]) - 0.5 * (np.linalg.slogdet(2 * np.pi * sigma)[1]
                                                + diff @ np.linalg.solve(sigma, diff))
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(joint, 1), rtol=1e-8)
    r = softmax(joint)
    means, loadings, noises = [], [], []
    for k in range(2):
        beta = L[k].T @ np.linalg.inv(L[k] @ L[k].T + np.diag(psi[k]))
        mean = r[:, k] @ x / r[:, k].sum()
        top, bottom, square = np.zeros((6, 2)), np.zeros((2, 2)), np.zeros((6, 6))
        for weight, row in zip(r[:, k], x):
            z = beta @ (row - mean)
            top += weight * np.outer(row - mean, z)
            bottom += weight * (np.eye(2) - beta @ L[k] + np.outer(z, z))
            square += weight * np.outer(row - mean, row - mean)
        n = r[:, k].sum()
        top, bottom, square = (top / n + added * beta.T, bottom / n + added * beta @ beta.T,
                               square / n + added * np.eye(6))
        means.append(mean)
        loadings.append(top @ np.linalg.inv(bottom))
        noises.append(np.diag(square - loadings[-1] @ top.T))
    if tied:
        noises = [r.sum(0) / len(x) @ np.array(noises)] * 2
    continued(model, x)
    np.testing.assert_allclose(model.means_, means, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.loadings_, loadings, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(model.noise_variances_, noises, rtol=1e-6)


def test_the_covariance_is_found_with_fewer_parameters():
    x, loadings, noise = factor_data(5000)
    model = MixtureOfFactorAnalysers(1, n_factors=2, tol=1e-6, max_iter=100).fit(x)
    np.testing.assert_allclose(model.covariances_[0], loadings @ loadings.T + np.diag(noise), atol=0.25)
    np.testing.assert_allclose(model.noise_variances_[0], noise, atol=0.15)
    assert model._n_parameters() == 6 + 6 + 6 * 2 - 1 < GaussianMixture(1).fit(x)._n_parameters()


def test_tied_noise_is_one_and_held_parameters_stay():
    x, *_ = factor_data()
    tied = MixtureOfFactorAnalysers(2, tied_noise=True, random_state=0).fit(x)
    np.testing.assert_allclose(*tied.noise_variances_)
    free = MixtureOfFactorAnalysers(2, random_state=0).fit(x)
    assert tied._n_parameters() == free._n_parameters() - 6
    model = MixtureOfFactorAnalysers(2, random_state=0, max_iter=2).fit(x)
    w, m, loadings = model.weights_.copy(), model.means_.copy(), model.loadings_.copy()
    continued(model, x, fixed=["weights", "means"])
    np.testing.assert_allclose(model.weights_, w)
    np.testing.assert_allclose(model.means_, m, rtol=1e-12, atol=1e-12)
    assert np.abs(model.loadings_ - loadings).max() > 1e-6


def test_all_factors_are_the_full_covariance():
    x, *_ = factor_data(100, d=3)
    full = MixtureOfFactorAnalysers(1, n_factors=3, tol=1e-7, max_iter=300).fit(x)
    assert full.score(x) == pytest.approx(GaussianMixture(1).fit(x).score(x), abs=1e-3)


def test_the_start_is_exact_for_equal_noise():
    loadings = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = loadings @ loadings.T + 0.7 * torch.eye(5, dtype=torch.float64)
    found, noise = principal_factors(covariance, 2)
    np.testing.assert_allclose(found @ found.T, loadings @ loadings.T, atol=1e-12)
    np.testing.assert_allclose(noise, 0.7, rtol=1e-12)


def test_more_factors_than_columns_are_refused():
    with pytest.raises(ValueError, match="n_factors=9 is more than the 6 feature"):
        MixtureOfFactorAnalysers(1, n_factors=9).fit(factor_data()[0])
