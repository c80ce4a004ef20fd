"""Shared factors against the joint normal of all numbers, regressions that others fit, and planted courses."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.cross_decomposition import CCA
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LinearRegression

from mixwell.density.processes.shared_factors import (
    Courses,
    Model,
    SharedFactors,
    em_step,
    example,
    infer,
    kernel,
    maximise_channels,
    maximise_scale,
)

RNG = np.random.default_rng(5)
TIMES = np.sort(RNG.uniform(0, 12, 9))
MODEL = Model(RNG.normal(size=(5, 2)), RNG.normal(size=5), RNG.uniform(0.2, 1, 5), np.array([1.0, 4.0]))
Y = RNG.normal(size=(9, 5))


def dense():
    """Mean and covariance of the numbers (T N) and their covariance with the courses (K T), one pair at a time."""
    cov, cross = np.zeros((9, 5, 9, 5)), np.zeros((2, 9, 9, 5))
    for t in range(9):
        for s in range(9):
            k = [0.99 * np.exp(-((TIMES[t] - TIMES[s]) ** 2) / 2 / scale**2) + 0.01 * (t == s) for scale in (1.0, 4.0)]
            for i in range(5):
                for c in range(2):
                    cross[c, t, s, i] = k[c] * MODEL.loadings_NK[i, c]
                for j in range(5):
                    shared = sum(MODEL.loadings_NK[i, c] * MODEL.loadings_NK[j, c] * k[c] for c in range(2))
                    cov[t, i, s, j] = shared + MODEL.noise_N[i] * (i == j and t == s)
    return np.tile(MODEL.level_N, 9), cov.reshape(45, 45), cross.reshape(18, 45)


def test_the_posterior_and_likelihood_are_those_of_the_joint_normal():
    mean, cov, cross = dense()
    found = infer(Y, TIMES, MODEL, 0.01)
    assert found.log_likelihood == pytest.approx(multivariate_normal.logpdf(Y.ravel(), mean, cov))
    gain = np.linalg.solve(cov, cross.T).T
    np.testing.assert_allclose(found.mean_TK.T.ravel(), gain @ (Y.ravel() - mean), atol=1e-9)
    prior = np.zeros((2, 9, 2, 9))
    for c, scale in enumerate((1.0, 4.0)):
        prior[c, :, c] = 0.99 * RBF(scale)(TIMES[:, None]) + 0.01 * np.eye(9)
    np.testing.assert_allclose(found.cov_KTKT.reshape(18, 18), prior.reshape(18, 18) - gain @ cross.T, atol=1e-9)
    np.testing.assert_allclose(kernel(TIMES, TIMES, 4.0, 0.01), prior[1, :, 1])


def test_channels_of_certain_courses_are_regressions():
    x = RNG.normal(size=(9, 2))
    certain = Courses(x, np.zeros((2, 9, 2, 9)), 0.0)
    trusted = LinearRegression().fit(x, Y)
    left = ((Y - trusted.predict(x)) ** 2).mean(0)
    loadings, level, noise = maximise_channels(Y, certain, np.arange(5))
    np.testing.assert_allclose(loadings, trusted.coef_)
    np.testing.assert_allclose(level, trusted.intercept_)
    np.testing.assert_allclose(noise, left)
    _, _, noise = maximise_channels(Y, certain, np.array([0, 0, 0, 1, 1]))
    np.testing.assert_allclose(noise, np.repeat([left[:3].mean(), left[3:].mean()], [3, 2]))


def test_the_length_scale_is_the_likeliest_on_a_fine_grid():
    second = np.outer(*[np.sin(TIMES)] * 2) + 0.1 * np.eye(9)
    found = maximise_scale(TIMES, second, 0.3, 0.01)
    grid = np.geomspace(0.05, 12, 2000)

    def loss(scale):
        K = 0.99 * RBF(scale)(TIMES[:, None]) + 0.01 * np.eye(9)
        return np.trace(np.linalg.solve(K, second)) + np.linalg.slogdet(K)[1]

    assert found == pytest.approx(min(grid, key=loss), rel=0.01)


def planted(noise, seed=0, scales=(2.0, 8.0), T=80):
    rng = np.random.default_rng(seed)
    t = np.arange(T)[:, None].astype(float)
    x = np.column_stack([rng.multivariate_normal(np.zeros(T), RBF(s)(t) + 1e-6 * np.eye(T)) for s in scales])
    loadings = [rng.normal(size=(6, 2)) for _ in range(3)]
    return x, loadings, [x @ w.T + 1 + noise * rng.normal(size=(T, 6)) for w in loadings]


@pytest.mark.parametrize("noise", ["subject", "channel"])
def test_em_climbs_and_finds_the_courses_with_their_length_scales(noise):
    x, _, seen = planted(1.0)
    model = SharedFactors(n_factors=2, noise=noise, length_scale=4.0, nugget=1e-3, max_iter=30, tol=1e-6).fit(seen)
    assert np.diff(model.log_likelihoods_).min() > -1e-8 and model.n_iter_ > 3
    a, b = CCA(2, max_iter=2000).fit(model.factors_, x).transform(model.factors_, x)
    assert min(np.corrcoef(a[:, k], b[:, k])[0, 1] for k in range(2)) > 0.93
    short, long = sorted(model.length_scales_)
    assert 1.4 < short < 2.8 and 4 < long < 11
    assert len(set(np.round(model.noise_[0], 12))) == (1 if noise == "subject" else 6)
    assert 0.7 < np.mean(model.noise_) < 1.3 and model.factor_variances_.shape == (80, 2)
    assert model.score(seen) * 80 >= model.log_likelihoods_[-1] - 1e-6


def test_smoothness_tells_courses_from_noise_where_components_cannot():
    x, _, seen = planted(3.0, seed=2)
    model = SharedFactors(n_factors=2, max_iter=20).fit(seen)
    joined = np.concatenate(seen, 1) - np.concatenate(seen, 1).mean(0)
    plain = np.linalg.svd(joined, full_matrices=False)[0][:, :2]
    fit = [LinearRegression().fit(found, x).score(found, x) for found in (model.factors_, plain)]
    assert fit[0] > fit[1] + 0.05


def test_uneven_times_and_one_step_by_hand():
    model, total = em_step(Y, TIMES, np.arange(5), MODEL, 0.01)
    assert infer(Y, TIMES, model, 0.01).log_likelihood > total
    fitted = SharedFactors(n_factors=2, max_iter=5, tol=0.0).fit([Y[:, :2], Y[:, 2:]], times=TIMES)
    assert np.diff(fitted.log_likelihoods_).min() > -1e-9


def test_subjects_join_and_recordings_of_some_are_read():
    x, loadings, seen = planted(0.3, seed=1)
    model = SharedFactors(n_factors=2, max_iter=20).fit(seen[:2])
    w, level, noise = model.join(seen[2])
    np.testing.assert_allclose(model.factors_ @ w.T + level, x @ loadings[2].T + 1, atol=0.6)
    assert abs(noise.mean() - 0.09) < 0.05
    one = model.transform(seen[1:2], subjects=[1])
    assert np.abs(np.corrcoef(one.T, model.factors_.T)[[0, 1], [2, 3]]).min() > 0.97
    np.testing.assert_allclose(model.transform(seen[:2]), model.factors_)


def test_refuses():
    y = [RNG.normal(size=(8, 3)), RNG.normal(size=(8, 2))]
    for wrong in ({"n_factors": 0}, {"noise": "none"}, {"nugget": 0.0}, {"length_scale": -1.0}, {"tol": -1.0}):
        with pytest.raises(ValueError, match="expected"):
            SharedFactors(**wrong).fit(y)
    with pytest.raises(ValueError, match=r"recordings of \[8, 9\] times; expected one length"):
        SharedFactors().fit([y[0], RNG.normal(size=(9, 3))])
    with pytest.raises(ValueError, match="n_factors is 6; expected at most 5 for 8 times and 5 channels"):
        SharedFactors(n_factors=6).fit(y)
    with pytest.raises(ValueError, match=r"times has shape \(8,\); expected \(8,\), each later"):
        SharedFactors().fit(y, times=np.zeros(8))
    model = SharedFactors(n_factors=1, max_iter=2).fit(y)
    with pytest.raises(ValueError, match=r"Y has \[2\] channels; expected \[3\] of subjects \[0\]"):
        model.transform(y[1:], subjects=[0])
    with pytest.raises(ValueError, match="the recording has 7 times; expected 8"):
        model.join(y[0][:7])


def test_example_runs():
    made = example(torch.Generator().manual_seed(0))
    found = made["estimator"].fit(made["Y"]).factors_[:, 0]
    assert abs(np.corrcoef(found, np.sin(np.arange(30) / 4))[0, 1]) > 0.9
