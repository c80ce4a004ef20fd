"""What is particular to each family: an EM step in loops, limits, refusals, options."""

import numpy as np
import pandas as pd
import pytest
import scipy.special as sp
import scipy.stats as st
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KernelDensity
from sklearn.utils.estimator_checks import parametrize_with_checks

from mixwell.density import (
    CategoricalMixture,
    GaussianMixture,
    Mixture,
    MixtureOfFactorAnalysers,
    PoissonMixture,
    StudentTMixture,
    VonMisesFisherMixture,
)
from mixwell.density._bessel import bessel_ratio, log_bessel_i
from mixwell.density.mixtures.student_t import solve_dof
from mixwell.density.mixtures.von_mises_fisher import concentration, draw_directions, log_normaliser

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@parametrize_with_checks([StudentTMixture(max_iter=5), MixtureOfFactorAnalysers(max_iter=5), PoissonMixture(),
                          CategoricalMixture(unknown="missing"), VonMisesFisherMixture(),
                          Mixture([GaussianMixture(1)])])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_estimator_checks(estimator, check):
    check(estimator)


def softmax(a):
    e = np.exp(a - a.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def continued(model, x, **more):
    """One more step from a fitted model."""
    return model.set_params(warm_start=True, max_iter=1, tol=0, **more).fit(x)


# -- Student t ------------------------------------------------------------------------------------------------------


def t_data():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.standard_t(3, (80, 2)) - 4, rng.standard_t(3, (80, 2)) + 4])


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_student_t_step_agrees_with_loops(kind):
    x = t_data()
    model = StudentTMixture(2, covariance_type=kind, random_state=0, max_iter=3, tol=0, reg_covar=0.0).fit(x)
    w, m, nu = model.weights_.copy(), model.means_.copy(), model.dofs_.copy()
    c = model.covariances_.copy()
    full = {"full": lambda: c, "tied": lambda: np.stack([c, c]), "diag": lambda: np.stack([np.diag(v) for v in c]),
            "spherical": lambda: np.stack([v * np.eye(2) for v in c])}[kind]()
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
    np.testing.assert_allclose(model.means_, means, rtol=1e-6)
    np.testing.assert_allclose(model.covariances_, expected, rtol=1e-6, atol=1e-9)
    for k in range(2):
        v = model.dofs_[k]
        old = (nu[k] + 2) / 2
        slope = np.log(v / 2) - sp.digamma(v / 2) + 1 + logs[k] + sp.digamma(old) - np.log(old)
        assert abs(slope) < 1e-8


def test_student_t_is_not_moved_by_outliers_and_tends_to_the_gaussian():
    x = t_data()
    x[0] = [500.0, 500.0]
    robust, plain = StudentTMixture(1).fit(x), GaussianMixture(1).fit(x)
    assert np.linalg.norm(robust.means_) < 0.7 < np.linalg.norm(plain.means_)
    clean = t_data()
    same = StudentTMixture(1, dof_init=1000.0, fixed="dofs", tol=1e-12, max_iter=200).fit(clean)
    np.testing.assert_allclose(same.covariances_, GaussianMixture(1).fit(clean).covariances_, rtol=0.05)
    assert same.dofs_[0] == 1000.0


def test_student_t_finds_the_degrees_of_freedom():
    x = np.random.default_rng(1).standard_t(4, (6000, 1))
    model = StudentTMixture(1, tol=1e-7, max_iter=300).fit(x)
    assert 3.4 < model.dofs_[0] < 4.8 and abs(model.covariances_[0, 0, 0] - 1) < 0.08
    assert StudentTMixture(1, min_dof=6.0, tol=1e-8, max_iter=300).fit(x).dofs_[0] == pytest.approx(6.0)
    # rows that all lie where u = 1 say only that nu is at least as large as before: nu_new = nu + D
    assert float(solve_dof(torch.tensor([5.0]).double(), torch.tensor([-1.0]).double(), 3, 0.1)) == pytest.approx(8)
    with pytest.raises(ValueError, match=r"dof_init=1.0 lies below min_dof=2.0"):
        StudentTMixture(1, dof_init=1.0, min_dof=2.0).fit(x)


# -- factor analysers -----------------------------------------------------------------------------------------------


def factor_data(n=600, d=6, q=2, seed=0):
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(d, q))
    noise = 0.3 + rng.random(d)
    return rng.normal(size=(n, q)) @ loadings.T + rng.normal(size=(n, d)) * np.sqrt(noise), loadings, noise


def test_factor_analysis_step_agrees_with_loops():
    x, *_ = factor_data(200)
    model = MixtureOfFactorAnalysers(1, n_factors=2, max_iter=3, tol=0, reg_covar=0.0).fit(x)
    L, psi, mean = model.loadings_[0].copy(), model.noise_variances_[0].copy(), x.mean(0)
    beta = L.T @ np.linalg.inv(L @ L.T + np.diag(psi))
    top, bottom = np.zeros((6, 2)), np.zeros((2, 2))
    for row in x:
        z = beta @ (row - mean)
        top += np.outer(row - mean, z)
        bottom += np.eye(2) - beta @ L + np.outer(z, z)
    new = top @ np.linalg.inv(bottom)
    continued(model, x)
    np.testing.assert_allclose(model.loadings_[0], new, rtol=1e-6, atol=1e-9)
    c = (x - mean).T @ (x - mean) / len(x)
    np.testing.assert_allclose(model.noise_variances_[0], np.diag(c - new @ beta @ c), rtol=1e-6)


def test_factor_analysis_recovers_the_covariance_with_fewer_parameters():
    x, loadings, noise = factor_data(5000)
    model = MixtureOfFactorAnalysers(1, n_factors=2, tol=1e-9, max_iter=500).fit(x)
    np.testing.assert_allclose(model.covariances_[0], loadings @ loadings.T + np.diag(noise), atol=0.25)
    np.testing.assert_allclose(model.noise_variances_[0], noise, atol=0.15)
    assert model._n_parameters() == 6 + 6 + 6 * 2 - 1 < GaussianMixture(1).fit(x)._n_parameters()
    tied = MixtureOfFactorAnalysers(2, n_factors=1, tied_noise=True, random_state=0).fit(x)
    np.testing.assert_allclose(*tied.noise_variances_)
    with pytest.raises(ValueError, match="n_factors=9 is more than the 6 feature"):
        MixtureOfFactorAnalysers(1, n_factors=9).fit(x)


def test_all_factors_are_the_full_covariance():
    x, *_ = factor_data(300, d=3)
    full = MixtureOfFactorAnalysers(1, n_factors=3, tol=1e-10, max_iter=2000).fit(x)
    assert full.score(x) == pytest.approx(GaussianMixture(1).fit(x).score(x), abs=1e-3)


# -- counts and categories ------------------------------------------------------------------------------------------


def test_poisson_step_agrees_with_loops():
    x = np.random.default_rng(0).poisson([[3, 9]] * 40 + [[9, 2]] * 40).astype(float)
    x[3, 1] = np.nan
    model = PoissonMixture(2, random_state=0, max_iter=1, tol=0).fit(x)
    joint = np.zeros((80, 2))
    for n, row in enumerate(x):
        for k in range(2):
            joint[n, k] = np.log(model.weights_[k]) + sum(
                st.poisson(model.rates_[k, d]).logpmf(v) for d, v in enumerate(row) if not np.isnan(v))
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(joint, 1), rtol=1e-9)
    r = softmax(joint)
    seen = ~np.isnan(x)
    expected = r.T @ np.where(seen, x, 0) / (r.T @ seen)
    np.testing.assert_allclose(continued(model, x).rates_, expected, rtol=1e-9)
    held = PoissonMixture(2, random_state=0, fixed="weights", max_iter=5).fit(x)
    np.testing.assert_allclose(held.weights_, [0.5, 0.5], atol=0.05)
    assert held._n_parameters() == 4
    x[5, 0] = -1
    with pytest.raises(ValueError, match="Negative values in data passed to PoissonMixture: row 5, column 0"):
        PoissonMixture().fit(x)


def test_categorical_step_agrees_with_loops():
    x = np.random.default_rng(0).integers(0, 3, (60, 2)).astype(float)
    x[4, 0] = np.nan
    model = CategoricalMixture(2, random_state=0, max_iter=1, tol=0, alpha=0.5).fit(x)
    joint = np.array([[np.log(model.weights_[k]) + sum(np.log(model.probabilities_[d][k, int(v)])
                                                       for d, v in enumerate(row) if not np.isnan(v))
                       for k in range(2)] for row in x])
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(joint, 1), rtol=1e-9)
    r = softmax(joint)
    continued(model, x)
    for d in range(2):
        counts = np.array([[r[x[:, d] == c, k].sum() + 0.5 for c in range(3)] for k in range(2)])
        np.testing.assert_allclose(model.probabilities_[d], counts / counts.sum(1, keepdims=True), rtol=1e-9)


def test_categories_may_be_text():
    frame = pd.DataFrame({"colour": ["red", "red", "blue", None, "blue", "red"] * 20,
                          "size": ["s", "s", "l", "l", "l", "s"] * 20})
    model = CategoricalMixture(2, random_state=0, n_init=3).fit(frame)
    assert [list(c) for c in model.categories_] == [["blue", "red"], ["l", "s"]]
    labels = model.predict(frame)
    assert labels[0] == labels[1] != labels[2] == labels[3]
    drawn, _ = model.sample(5)
    assert set(drawn[:, 0]) <= {"red", "blue"}
    np.testing.assert_array_equal(labels, CategoricalMixture(2, random_state=0, n_init=3).fit_predict(frame.to_numpy()))
    strange = pd.DataFrame({"colour": ["red", "green"], "size": ["s", "s"]})
    with pytest.raises(ValueError, match="unknown category in row 1, column 'colour'"):
        model.predict(strange)
    lenient = CategoricalMixture(2, random_state=0, unknown="missing").fit(frame)
    only_size = pd.DataFrame({"colour": [None, None], "size": ["s", "s"]})
    np.testing.assert_allclose(lenient.score_samples(strange)[1], lenient.score_samples(only_size)[1])


# -- directions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0.0, 0.5, 3.2, 20.0, 79.0, 150.0])
def test_log_bessel_agrees_with_scipy_where_it_is_finite(order):
    x = np.logspace(-2, 4, 40)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.log(sp.ive(order, x)) + x
        ratio = sp.ive(order + 1, x) / sp.ive(order, x)
    finite = np.isfinite(expected) & np.isfinite(ratio) & (ratio > 0)
    assert finite.sum() > 20
    x = torch.from_numpy(x)
    np.testing.assert_allclose(log_bessel_i(order, x)[finite], expected[finite], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(bessel_ratio(order, x)[finite], ratio[finite], rtol=1e-12)


def test_log_bessel_keeps_the_recurrence_at_huge_orders():
    x = torch.logspace(0, 6, 30, dtype=torch.float64)
    below, here, above = (log_bessel_i(v, x) for v in (16383.0, 16384.0, 16385.0))
    assert bool(torch.isfinite(here).all())
    left = 1 - torch.exp(above - below)
    np.testing.assert_allclose(left, 2 * 16384 / x * torch.exp(here - below), rtol=1e-7, atol=1e-9)
    assert float(log_bessel_i(0.0, torch.zeros(1))) == 0 and float(log_bessel_i(2.0, torch.zeros(1))) == -np.inf


def test_von_mises_fisher_against_scipy_and_limits():
    kappa = torch.tensor([0.5, 10.0, 300.0], dtype=torch.float64)
    for k, c in zip(kappa.tolist(), log_normaliser(4, kappa).tolist()):
        mu = np.array([0.0, 0.6, 0.8, 0.0])
        assert c + k == pytest.approx(st.vonmises_fisher(mu, k).logpdf(mu), rel=1e-9)
    assert float(log_normaliser(3, torch.zeros(1, dtype=torch.float64))) == pytest.approx(-np.log(4 * np.pi))
    for d in (2, 3, 50, 2048):
        kappa = torch.tensor([0.1, 5.0, 2000.0, 1e6], dtype=torch.float64)
        np.testing.assert_allclose(concentration(d, bessel_ratio(d / 2 - 1, kappa), 1e9), kappa, rtol=1e-6)


def test_von_mises_fisher_step_agrees_with_loops():
    rng = np.random.default_rng(0)
    x = np.concatenate([draw_directions(rng, np.eye(3)[0], 8.0, 60), draw_directions(rng, np.eye(3)[1], 20.0, 60)])
    model = VonMisesFisherMixture(2, random_state=0, max_iter=1, tol=0).fit(x * 7.0)
    joint = np.stack([np.log(model.weights_[k]) + st.vonmises_fisher(model.mean_directions_[k] / np.linalg.norm(
        model.mean_directions_[k]), model.concentrations_[k]).logpdf(x) for k in range(2)], 1)
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(joint, 1), rtol=1e-8)
    total = softmax(joint).T @ x
    continued(model, x)
    np.testing.assert_allclose(model.mean_directions_, total / np.linalg.norm(total, axis=1, keepdims=True), atol=1e-9)
    for k in range(2):
        length = np.linalg.norm(total[k]) / softmax(joint)[:, k].sum()
        kappa = model.concentrations_[k]
        assert 1 / np.tanh(kappa) - 1 / kappa == pytest.approx(length, abs=1e-8)


def test_von_mises_fisher_recovers_concentrations_in_two_thousand_dimensions():
    rng = np.random.default_rng(0)
    kappas, d = (3000.0, 8000.0), 2048
    x = np.concatenate([draw_directions(rng, np.eye(d)[i], k, 60) for i, k in enumerate(kappas)])
    model = VonMisesFisherMixture(2, random_state=0, fixed=None).fit(x)
    assert np.isfinite(model.lower_bound_) and len(np.unique(model.predict(x))) == 2
    # with 60 rows the length of the mean is biased upwards by the noise in d dimensions
    expected = [float(concentration(d, torch.tensor(np.sqrt(a**2 + (1 - a**2) / 60)), 1e9)) for a in
                (float(bessel_ratio(d / 2 - 1, torch.tensor(k))) for k in kappas)]
    np.testing.assert_allclose(np.sort(model.concentrations_), expected, rtol=0.03)


def test_von_mises_fisher_options_and_refusals():
    x = np.repeat(np.array([[1.0, 0.0], [0.0, 1.0]]), 10, axis=0)
    assert VonMisesFisherMixture(2, random_state=0, max_concentration=50.0).fit(x).concentrations_.max() == 50
    with pytest.raises(ValueError, match="1 feature"):
        VonMisesFisherMixture().fit(x[:, :1])
    with pytest.warns(UserWarning, match="row 3 is all zeros"):
        model = VonMisesFisherMixture(1).fit(np.r_[x[:3], np.zeros((1, 2)), x[3:]])
    np.testing.assert_allclose(model.concentrations_, VonMisesFisherMixture(1).fit(x).concentrations_, rtol=1e-9)


# -- any components -------------------------------------------------------------------------------------------------


class Exponential:
    """A component that is no estimator of the library."""

    def fit(self, X, sample_weight):
        self.rate = sample_weight.sum() / (sample_weight @ X[:, 0])
        return self

    def log_prob(self, X):
        return np.where(X[:, 0] >= 0, np.log(self.rate) - self.rate * X[:, 0], -np.inf)

    def sample(self, n):
        return np.full((n, 1), 1 / self.rate)


def test_different_components_find_their_rows():
    rng = np.random.default_rng(0)
    x = np.r_[rng.exponential(1.0, 400), rng.normal(12, 1, 600)][:, None]
    given = Exponential()
    model = Mixture([GaussianMixture(1), given], random_state=0, tol=1e-8).fit(x)
    assert not hasattr(given, "rate")
    assert model.components_[1].rate == pytest.approx(1 / x[:400].mean(), rel=0.02)
    np.testing.assert_allclose(model.weights_, [0.6, 0.4], atol=0.01)
    assert np.diff(model.lower_bounds_).min() > -1e-9
    assert model.sample(10)[0].shape == (10, 1)


def test_general_mixture_of_gaussians_is_the_gaussian_mixture():
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(-3, 1, (100, 2)), rng.normal(3, 1, (100, 2))]
    model = Mixture([GaussianMixture(1), GaussianMixture(1)], random_state=0, tol=1e-10).fit(x)
    assert model.score(x) == pytest.approx(GaussianMixture(2, random_state=0, tol=1e-10).fit(x).score(x), abs=1e-6)


def test_general_mixture_refusals():
    x = np.random.default_rng(0).normal(size=(30, 1))
    with pytest.raises(ValueError, match="components is empty"):
        Mixture().fit(x)
    with pytest.raises(ValueError, match="no log_prob"):
        Mixture([object()]).fit(x)
    with pytest.raises(ValueError, match="init='x'"):
        Mixture([KernelDensity()], init="x").fit(x)
    with pytest.warns(ConvergenceWarning):
        Mixture([GaussianMixture(1), GaussianMixture(1)], max_iter=1, random_state=0).fit(x)
