"""Student-t mixture: an EM step in loops, robustness, the Gaussian limit, the degrees of freedom."""

import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as st
import torch

from mixwell.density import GaussianMixture, StudentTMixture
from mixwell.density.mixtures.student_t import solve_dof
from tests.density.mixtures._tools import continued, softmax

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
KINDS = ("full", "tied", "diag", "spherical")


def t_data():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.standard_t(3, (80, 2)) - 4, rng.standard_t(3, (80, 2)) + 4])


def as_matrices(kind, c):
    if kind == "full":
        return c
    if kind == "tied":
        return np.stack([c, c])
    return np.stack([np.diag(v) if kind == "diag" else v * np.eye(2) for v in c])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("added", [0.0, 0.3])
def test_a_step_agrees_with_loops(kind, added):
    x = t_data()
    model = StudentTMixture(2, covariance_type=kind, random_state=0, max_iter=3, tol=0, reg_covar=added).fit(x)
    w, m, nu = model.weights_.copy(), model.means_.copy(), model.dofs_.copy()
    full = as_matrices(kind, model.covariances_.copy())
    joint = np.stack([np.log(w[k]) + st.multivariate_t(m[k], full[k], nu[k]).logpdf(x) for k in range(2)], 1)
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(joint, 1), rtol=1e-8)
    r = softmax(joint)
    means, mats, logs = [], [], []
    for k in range(2):
        diff = x - m[k]
        u = (nu[k] + 2) / (nu[k] + np.einsum("nd,de,ne->n", diff, np.linalg.inv(full[k]), diff))
        means.append((r[:, k] * u) @ x / (r[:, k] @ u))
        diff = x - means[k]
        mats.append((r[:, k] * u * diff.T) @ diff)
        logs.append(r[:, k] @ (np.log(u) - u) / r[:, k].sum())
    n = r.sum(0)
    expected = {"full": lambda: np.stack([a / b for a, b in zip(mats, n)]), "tied": lambda: sum(mats) / n.sum(),
                "diag": lambda: np.stack([np.diag(a) / b for a, b in zip(mats, n)]),
                "spherical": lambda: np.array([np.trace(a) / 2 / b for a, b in zip(mats, n)])}[kind]()
    continued(model, x)
    np.testing.assert_allclose(model.weights_, n / len(x), rtol=1e-8)
    np.testing.assert_allclose(model.means_, means, rtol=1e-6)
    eye = added * np.eye(2) if kind in ("full", "tied") else added
    np.testing.assert_allclose(model.covariances_, expected + eye, rtol=1e-6, atol=1e-9)
    for k in range(2):
        v = model.dofs_[k]
        old = (nu[k] + 2) / 2
        slope = np.log(v / 2) - sp.digamma(v / 2) + 1 + logs[k] + sp.digamma(old) - np.log(old)
        assert abs(slope) < 1e-8


def test_outliers_do_not_move_the_means():
    x = t_data()
    x[0] = [500.0, 500.0]
    robust, plain = StudentTMixture(1).fit(x), GaussianMixture(1).fit(x)
    assert np.linalg.norm(robust.means_) < 0.7 < np.linalg.norm(plain.means_)


@pytest.mark.parametrize("kind", KINDS)
def test_many_degrees_of_freedom_are_the_gaussian(kind):
    x = t_data()
    options = {"n_components": 2, "covariance_type": kind, "random_state": 0, "tol": 1e-9, "max_iter": 200}
    model = StudentTMixture(dof_init=1e7, fixed="dofs", **options).fit(x)
    plain = GaussianMixture(**options).fit(x)
    np.testing.assert_allclose(model.covariances_, plain.covariances_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.score_samples(x), plain.score_samples(x), rtol=1e-4)
    assert (model.dofs_ == 1e7).all() and model._n_parameters() == plain._n_parameters()


def test_the_degrees_of_freedom_are_found():
    x = np.random.default_rng(1).standard_t(4, (6000, 1))
    model = StudentTMixture(1, tol=1e-6, max_iter=100).fit(x)
    assert 3.4 < model.dofs_[0] < 4.8 and abs(model.covariances_[0, 0, 0] - 1) < 0.08
    assert StudentTMixture(1, min_dof=6.0, tol=1e-6, max_iter=100).fit(x).dofs_[0] == pytest.approx(6.0)
    # rows that all lie where u = 1, at five degrees of freedom in three columns: nu_new = nu + D
    mean_logs = torch.tensor([-1 + sp.digamma(4) - np.log(4)])
    assert float(solve_dof(mean_logs, 0.1)) == pytest.approx(8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_with_missing_values_agrees_with_loops(kind):
    x = t_data()
    x[np.random.default_rng(1).random(x.shape) < 0.3] = np.nan
    model = StudentTMixture(2, covariance_type=kind, random_state=0, max_iter=3, tol=0, reg_covar=0.0).fit(x)
    w, m, nu = model.weights_.copy(), model.means_.copy(), model.dofs_.copy()
    full = as_matrices(kind, model.covariances_.copy())
    joint, u, log_u = np.empty((160, 2)), np.ones((160, 2)), np.zeros((160, 2))
    filled, spread = np.tile(x[:, None], (1, 2, 1)), np.zeros((160, 2, 2, 2))
    for n, k in np.ndindex(160, 2):
        o, lost = np.flatnonzero(~np.isnan(x[n])), np.flatnonzero(np.isnan(x[n]))
        slope = full[k][np.ix_(lost, o)] @ np.linalg.inv(full[k][np.ix_(o, o)])
        diff = x[n, o] - m[k][o]
        half = (nu[k] + len(o)) / 2
        u[n, k] = 2 * half / (nu[k] + diff @ np.linalg.inv(full[k][np.ix_(o, o)]) @ diff)
        log_u[n, k] = sp.digamma(half) - np.log(half / u[n, k])
        filled[n, k, lost] = m[k][lost] + slope @ diff
        spread[n, k][np.ix_(lost, lost)] = full[k][np.ix_(lost, lost)] - slope @ full[k][np.ix_(o, lost)]
        density = st.multivariate_t(m[k][o], full[k][np.ix_(o, o)], nu[k]).logpdf(x[n, o]) if len(o) else 0.0
        joint[n, k] = np.log(w[k]) + density
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(joint, 1), rtol=1e-8, atol=1e-12)
    r = softmax(joint)
    means = np.einsum("nk,nkd->kd", r * u, filled) / (r * u).sum(0)[:, None]
    diff = filled - means
    sums = np.einsum("nk,nkd,nke->kde", r * u, diff, diff) + np.einsum("nk,nkde->kde", r, spread)
    n = r.sum(0)
    expected = {"full": sums / n[:, None, None], "tied": sums.sum(0) / n.sum(),
                "diag": np.einsum("kdd->kd", sums) / n[:, None], "spherical": np.einsum("kdd->k", sums) / 2 / n}[kind]
    continued(model, x)
    np.testing.assert_allclose(model.means_, means, rtol=1e-6)
    np.testing.assert_allclose(model.covariances_, expected, rtol=1e-6, atol=1e-9)
    v = model.dofs_
    assert np.abs(np.log(v / 2) - sp.digamma(v / 2) + 1 + (r * (log_u - u)).sum(0) / n).max() < 1e-8


def test_refusals():
    x = t_data()
    with pytest.raises(ValueError, match=r"dof_init=1.0 lies below min_dof=2.0"):
        StudentTMixture(1, dof_init=1.0, min_dof=2.0).fit(x)
    with pytest.raises(ValueError, match="fixed names 'rates'; expected some of weights, means, covariances, dofs"):
        StudentTMixture(1, fixed="rates").fit(x)
    x[2, 1] = np.inf
    with pytest.raises(ValueError, match="contains infinity"):
        StudentTMixture(1).fit(x)
