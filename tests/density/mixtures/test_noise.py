"""Gaussian mixture with noise or trimming: a step in loops, outliers, limit cases, what is refused."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import adjusted_rand_score

from mixwell.density import GaussianMixture, NoisyGaussianMixture
from mixwell.density.mixtures.noise import data_volume

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
CENTRES = np.array([[0.0, 0.0], [8.0, 3.0]])


def table(noise=30, n=200, seed=0):
    """Two round groups, and uniform noise in a box forty wide; their labels, -1 for noise."""
    rng = np.random.default_rng(seed)
    own = np.arange(n) % 2
    x = np.concatenate([CENTRES[own] + rng.normal(size=(n, 2)), rng.uniform(-20, 20, (noise, 2))])
    return x, np.concatenate([own, np.full(noise, -1)])


def joint(model, x):
    """w_k N(x; k) and w_0 / V in loops."""
    return np.array([[w * stats.multivariate_normal.pdf(row, m, c) for w, m, c in
                      zip(model.weights_, model.means_, model.covariances_)] + [model.noise_weight_ / model.volume_]
                     for row in x])


def test_a_step_agrees_with_loops():
    x, labels = table()
    options = {"noise": labels < 0, "tol": 0.0, "reg_covar": 0.0, "random_state": 0}
    model = NoisyGaussianMixture(2, max_iter=3, **options).fit(x)
    found = joint(model, x)
    np.testing.assert_allclose(model.score_samples(x), np.log(found.sum(1)), rtol=1e-9)
    r = found / found.sum(1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(x), r, atol=1e-12)
    more = NoisyGaussianMixture(2, max_iter=4, **options).fit(x)
    np.testing.assert_allclose(more.noise_weight_, r[:, 2].mean(), rtol=1e-9)
    np.testing.assert_allclose(more.weights_, r[:, :2].mean(0), rtol=1e-9)
    means = r[:, :2].T @ x / r[:, :2].sum(0)[:, None]
    np.testing.assert_allclose(more.means_, means, rtol=1e-9)
    for k in range(2):
        rest = x - means[k]
        np.testing.assert_allclose(more.covariances_[k], (r[:, k, None] * rest).T @ rest / r[:, k].sum(), rtol=1e-9)
    assert np.diff(more.log_likelihoods_).min() > -1e-12
    assert more.log_likelihoods_[3] == pytest.approx(model.score(x))
    numbers = 1 + 1 + 2 * 2 + 2 * 3
    assert more.bic(x) == pytest.approx(numbers * np.log(len(x)) - 2 * more.score_samples(x).sum())


@pytest.mark.parametrize("options", [{"noise": 0.1}, {"noise": None, "trim": 0.13}])
def test_outliers_do_not_bend_the_groups(options):
    x, labels = table()
    model = NoisyGaussianMixture(2, random_state=0, n_init=3, **options).fit(x)
    order = model.means_[:, 0].argsort()
    np.testing.assert_allclose(model.means_[order], CENTRES, atol=0.35)
    assert np.linalg.det(model.covariances_).max() < 2.5
    plain = GaussianMixture(2, random_state=0, n_init=3).fit(x)
    assert np.linalg.det(plain.covariances_).max() > 10
    assert adjusted_rand_score(labels, model.predict(x)) > 0.85 > adjusted_rand_score(labels, plain.predict(x))
    assert np.diff(model.log_likelihoods_).min() > -1e-9


def test_trimming_leaves_the_share_that_is_asked_and_fits_the_rest_alone():
    x, _ = table()
    model = NoisyGaussianMixture(2, noise=None, trim=0.1, reg_covar=0.0, tol=1e-12, max_iter=2000, random_state=0)
    model.fit(x)
    assert model.kept_.sum() == 207 and (model.predict(x) == -1).sum() == 23
    own = GaussianMixture(2, reg_covar=0.0, tol=1e-12, max_iter=2000, means_init=model.means_, random_state=0)
    own.fit(x[model.kept_])
    np.testing.assert_allclose(own.means_, model.means_, atol=1e-4)
    np.testing.assert_allclose(own.covariances_, model.covariances_, atol=1e-3)


def test_without_noise_and_trimming_it_is_a_gaussian_mixture():
    x, _ = table()
    model = NoisyGaussianMixture(2, noise=None, covariance_type="diag", tol=1e-10, random_state=0).fit(x)
    plain = GaussianMixture(2, covariance_type="diag", tol=1e-10, max_iter=500, random_state=0).fit(x)
    np.testing.assert_allclose(model.means_, plain.means_, rtol=1e-4)
    assert model.noise_weight_ == 0 and model.score(x) == pytest.approx(plain.score(x))


def test_a_fixed_volume_and_the_smaller_box():
    x, labels = table()
    turned = x @ np.array([[0.6, -0.8], [0.8, 0.6]])
    thin = np.column_stack([np.arange(50.0), np.arange(50.0) + np.tile([0.0, 0.1], 25)])
    assert data_volume(thin) < 0.3 * np.ptp(thin, axis=0).prod()
    assert data_volume(x) <= np.ptp(x, axis=0).prod() and data_volume(turned) > 0
    given = NoisyGaussianMixture(2, noise=labels < 0, volume=1600.0, random_state=0).fit(x)
    assert given.volume_ == 1600.0
    assert given.noise_weight_ == pytest.approx(30 / 230, abs=0.03)


@pytest.mark.parametrize("options, message", [
    ({"noise": 0.0}, "noise=0.0, trim=0.0; expected shares between 0 and 1"),
    ({"noise": None, "trim": 1.0}, "trim=1.0; expected shares"),
    ({"trim": 0.1}, "trim=0.1 with noise=0.05; expected noise=None"),
    ({"volume": 0.0}, "volume=0.0; expected a number above 0"),
    ({"noise": np.zeros(3, dtype=bool)}, r"noise has shape \(3,\) and type bool; expected \(230,\)"),
])
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        NoisyGaussianMixture(n_components=2, **options).fit(table()[0])


def test_rows_without_a_volume_are_refused():
    x = np.column_stack([np.arange(20.0), np.ones(20)])
    with pytest.raises(ValueError, match="the rows take no volume"):
        NoisyGaussianMixture(1).fit(x)
