"""Modes under priors: a step in loops, no general optimiser beats them, collapse is prevented, the limit is EM."""

import numpy as np
import pytest
from scipy.optimize import minimize

from mixwell.density import GaussianMixture
from tests.density.mixtures._tools import continued

RNG = np.random.default_rng(0)
X = np.vstack([RNG.normal(0, 1, (40, 2)), RNG.normal([4, 6], [1, 2], (30, 2))])
KINDS = ("full", "tied", "diag", "spherical")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def log_prior(means, covariances, shrinkage, K=2):
    """Of full matrices, in the data's own units; the tied one counts once."""
    mean, scale, nu = X.mean(0), np.diag(X.var(0)) / K ** (2 / 2), 4
    total = 0.0
    for k, m in enumerate(means):
        own = covariances[min(k, len(covariances) - 1)]
        inverse, log_det = np.linalg.inv(own), np.linalg.slogdet(own)[1]
        total -= 0.5 * (log_det + shrinkage * (m - mean) @ inverse @ (m - mean))
        if k < len(covariances):
            total -= 0.5 * ((nu + 2 + 1) * log_det + np.trace(scale @ inverse))
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [0.0, 1e5])
def test_the_posterior_never_falls(kind, shift):
    options = {"covariance_type": kind, "shrinkage": 2.0, "reg_covar": 0.0, "random_state": 0, "tol": 0, "max_iter": 30}
    model = GaussianMixture(2, **options).fit(X + shift)
    assert np.diff(model.lower_bounds_).min() > -1e-9
    again = GaussianMixture(2, **options).fit(X)
    np.testing.assert_allclose(model.covariances_, again.covariances_, rtol=1e-3)  # the prior's mean is a short number


@pytest.mark.parametrize("kind", ["full", "tied"])
def test_a_step_is_the_mode_given_the_responsibilities(kind):
    model = GaussianMixture(2, covariance_type=kind, shrinkage=1.5, reg_covar=0.0, random_state=0, max_iter=2,
                            tol=0).fit(X)
    r_NK = model.predict_proba(X)
    continued(model, X)
    mean, scale = X.mean(0), np.diag(X.var(0)) / 2
    pooled = scale.copy()
    for k in range(2):
        r = r_NK[:, k]
        expected = (r @ X + 1.5 * mean) / (r.sum() + 1.5)
        np.testing.assert_allclose(model.means_[k], expected, atol=1e-6)
        own = (X - expected).T @ ((X - expected) * r[:, None]) + 1.5 * np.outer(expected - mean, expected - mean)
        pooled += own
        if kind == "full":
            np.testing.assert_allclose(model.covariances_[k], (own + scale) / (r.sum() + 4 + 2 + 2), atol=1e-6)
    if kind == "tied":
        np.testing.assert_allclose(model.covariances_, pooled / (70 + 4 + 2 + 1 + 2), atol=1e-6)


def test_the_bound_is_the_posterior_up_to_a_constant():
    gaps = []
    for steps in (2, 4):
        model = GaussianMixture(2, shrinkage=1.5, reg_covar=0.0, random_state=0, max_iter=steps, tol=0).fit(X)
        before = GaussianMixture(2, shrinkage=1.5, reg_covar=0.0, random_state=0, max_iter=steps - 1, tol=0).fit(X)
        posterior = before.score(X) * 70 + log_prior(before.means_, before.covariances_, 1.5)
        gaps.append(model.lower_bounds_[-1] * 70 - posterior)
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-4)


@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_variances_are_the_mode_that_an_optimiser_finds(kind):
    model = GaussianMixture(1, covariance_type=kind, shrinkage=3.0, reg_covar=0.0).fit(X)
    mean, scale, nu = X.mean(0), X.var(0), 4
    power = 3 if kind == "diag" else 4

    def loss(log_variance):
        v = np.exp(log_variance) * np.ones(2)
        determinant = np.log(v).sum() if kind == "diag" else np.log(v[0])
        likelihood = 70 * np.log(v).sum() + ((X - mean) ** 2 / v).sum()
        return 0.5 * (likelihood + (nu + power) * determinant + (scale / v).sum())

    found = minimize(loss, np.zeros(2 if kind == "diag" else 1), tol=1e-12)
    np.testing.assert_allclose(np.ravel(model.covariances_), np.exp(found.x), rtol=1e-4)


def test_no_component_collapses_and_little_shrinkage_of_many_rows_is_em():
    x = np.vstack([np.full((12, 2), 50.0), X])
    plain = GaussianMixture(2, random_state=0).fit(x)
    model = GaussianMixture(2, shrinkage=0.01, random_state=0).fit(x)
    assert np.linalg.det(plain.covariances_).min() < 1e-9 < 1e-3 < np.linalg.det(model.covariances_).min()
    many = np.repeat(X, 300, axis=0)
    close = GaussianMixture(2, shrinkage=1e-6, random_state=0, tol=1e-6).fit(many)
    np.testing.assert_allclose(close.means_, GaussianMixture(2, random_state=0, tol=1e-6).fit(many).means_, atol=1e-2)


def test_rows_may_lack_values():
    x = X.copy()
    x[::7, 1] = np.nan
    model = GaussianMixture(2, shrinkage=0.5, reg_covar=0.0, random_state=0, tol=0, max_iter=15).fit(x)
    assert np.diff(model.lower_bounds_).min() > -1e-9


def test_refuses():
    with pytest.raises(ValueError, match=r"shrinkage=0\.01 with covariance_type='VEE'; priors are for"):
        GaussianMixture(2, covariance_type="VEE", shrinkage=0.01).fit(X)
    with pytest.raises(ValueError, match="'shrinkage' parameter"):
        GaussianMixture(2, shrinkage=-1.0).fit(X)
