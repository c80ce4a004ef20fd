"""Local factors against dense conditioning, bounds against integrals, steps against numerical slopes."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from scipy.special import digamma, gammaln, softmax

from mixwell.density.latent._factor_steps import best_means, best_odds, best_spreads, row_step, site_step
from mixwell.density.latent._factors import (
    NODES_Q,
    Factors,
    Rows,
    condition,
    log_at_nodes,
    row_bounds,
    total_bound,
    weight_points,
)
from mixwell.density.latent.deconvolution import Config, DeconvolutionModel, example, start

RNG = np.random.default_rng(0)
DISTRIBUTIONS = ["normal", "poisson", "beta"]


def precincts(count=40, seed=0, distribution="normal"):
    """Rows of three features, their weights of two factors, and local factors that vary for the second only."""
    rng = np.random.default_rng(seed)
    mean = np.array([[0.0, 2.0, 1.0], [3.0, 0.0, -1.0]])
    weights = rng.dirichlet([0.7, 0.7], count)
    local = mean + np.array([0.05, 0.5])[:, None] * rng.standard_normal((count, 2, 3))
    theta = np.einsum("nk,nkd->nd", weights, local)
    if distribution == "poisson":
        return rng.poisson(np.logaddexp(0, 10 * theta + 30)).astype(float), weights, local
    if distribution == "beta":
        return rng.beta(99 / (1 + np.exp(-theta)), 99 / (1 + np.exp(theta))), weights, local
    return theta, weights, local


X, WEIGHTS, LOCAL = precincts()


def state(N=3, K=2, D=3, seed=0):
    """Made-up rows and factors."""
    rng = np.random.default_rng(seed)
    roots = rng.standard_normal((K + N, 6, 6))
    spread = roots @ roots.swapaxes(1, 2) + np.eye(6)
    y = rng.standard_normal((N, D))
    rows = Rows(y, rng.uniform(0.5, 3, N), rng.standard_normal((N, K)), spread[K:, :K, :K].copy(), y.copy(),
                np.zeros((N, D)))
    factors = Factors(rng.standard_normal(K), rng.standard_normal((K, D)), spread[:K, :D, :D].copy(),
                      rng.uniform(0.1, 1, D), np.zeros(D), np.full(D, 4.0), np.full(D, 0.5))
    return rows, factors


def given(rows, factors):
    """An estimator that believes this of any rows."""
    model = DeconvolutionModel(n_factors=2)
    model._factors, model._infer = factors, lambda *_: rows
    return model


def numerical_slope(function, x, step=1e-5):
    slope = np.zeros(x.size)
    for i in range(x.size):
        move = np.zeros(x.size)
        move[i] = step
        slope[i] = (function(x + move.reshape(x.shape)) - function(x - move.reshape(x.shape))) / (2 * step)
    return slope


def test_local_factors_agree_with_dense_conditioning():
    rows, factors = state()
    pi, _ = weight_points(rows)
    u, _, log_density = condition(pi, rows, factors)
    slow = np.zeros((len(pi), 3, 2, 3))
    for s in range(len(pi)):
        for n in range(3):
            prior_mean, prior_cov, average = factors.mean_KD.ravel(), np.zeros((6, 6)), np.zeros((3, 6))
            for k in range(2):
                block = slice(3 * k, 3 * k + 3)
                prior_cov[block, block] = factors.cov_KDD[k] / (rows.particles_N[n] * pi[s, n, k])
                average[:, block] = pi[s, n, k] * np.eye(3)
            seen = average @ prior_cov @ average.T + np.diag(factors.noise_D)
            gain = prior_cov @ average.T @ np.linalg.inv(seen)
            miss = rows.y_ND[n] - average @ prior_mean
            slow[s, n] = (prior_mean + gain @ miss).reshape(2, 3)
            assert log_density[s, n] == pytest.approx(stats.multivariate_normal(np.zeros(3), seen).logpdf(miss))
            np.testing.assert_allclose(pi[s, n] @ slow[s, n], rows.y_ND[n] - factors.noise_D * u[s, n])
    model = given(rows, factors)
    np.testing.assert_allclose(model.deconvolve(rows.y_ND)[1], slow.mean(0))


def test_the_points_have_the_moments_of_the_posterior():
    rows, _ = state(K=3)
    pi, gammas = weight_points(rows)
    covariance = np.linalg.inv(rows.precision_NKK)
    for n in range(3):
        root = np.linalg.cholesky(covariance[n])
        points = [rows.log_mean_NK[n] + sign * np.sqrt(3) * root[:, k] for sign in (1, -1) for k in range(3)]
        np.testing.assert_allclose(pi[:, n], softmax(points, axis=1))
        np.testing.assert_allclose(np.cov(np.transpose(points), bias=True), covariance[n])
        np.testing.assert_allclose(gammas[n], np.exp(rows.log_mean_NK[n] + 0.5 * np.diag(covariance[n])))
    np.testing.assert_allclose(pi.sum(-1), 1)


def test_bounds_of_rows_agree_with_a_loop():
    rows, factors = state()
    config = Config(n_factors=2, local_concentration=3.0)
    pi, gammas = weight_points(rows)
    stick = 1 / (1 + np.exp(-factors.odds_K[0]))
    for n, value in enumerate(row_bounds(rows, factors, config)):
        expected = np.mean([condition(pi[s : s + 1], rows, factors)[2][0, n] for s in range(4)])
        for k, beta in enumerate([stick, 1 - stick]):
            expected += (3 * beta + 1e-3) * rows.log_mean_NK[n, k] - gammas[n, k] - gammaln(3 * beta + 1e-3)
        expected += stats.multivariate_normal(np.zeros(2), np.linalg.inv(rows.precision_NKK[n])).entropy()
        assert value == pytest.approx(expected)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS[1:])
def test_densities_at_nodes(distribution):
    y = {"poisson": 3.0, "beta": 0.3}[distribution]
    found = log_at_nodes(np.full((1, 1), y), np.full((1, 1, 1), 0.4), np.full((1, 1, 1), 0.09),
                         Config(distribution=distribution, noise=0.1)).ravel()
    theta = 0.4 + 0.3 * NODES_Q
    mean = 1 / (1 + np.exp(-theta)) if distribution == "beta" else np.log1p(np.exp(theta))
    slow = stats.beta(9 * mean, 9 * (1 - mean)).logpdf if distribution == "beta" else stats.poisson(mean).logpmf
    np.testing.assert_allclose(found, slow(y))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS[1:])
def test_sites_bring_the_bound_close_to_the_evidence(distribution):
    """One factor, one feature: weights are one, and the evidence is an integral over theta."""
    y = {"poisson": 4.0, "beta": 0.3}[distribution]
    config = Config(n_factors=1, distribution=distribution, noise=0.2, local_concentration=2.0)
    rows, factors = state(1, 1, 1)
    factors = replace(factors, noise_D=np.zeros(1))
    rows = replace(rows, y_ND=np.full((1, 1), y), site_ND=np.full((1, 1), 1.0), site_var_ND=np.ones((1, 1)))
    for _ in range(20):
        rows = site_step(rows, factors, config)
    deviation = np.sqrt(factors.cov_KDD[0, 0, 0] / rows.particles_N[0])

    def integrand(theta):
        log_f = log_at_nodes(rows.y_ND, np.full((1, 1, 1), theta), np.zeros((1, 1, 1)), config)[0, 0, 0, 0]
        return np.exp(log_f) * stats.norm.pdf(theta, factors.mean_KD[0, 0], deviation)

    evidence = np.log(quad(integrand, -15, 15, limit=200)[0])
    shape, (_, gammas) = 2.0 + 1e-3, weight_points(rows)
    of_weights = shape * rows.log_mean_NK[0, 0] - gammas[0, 0] - gammaln(shape) \
        + 0.5 * np.log(2 * np.pi * np.e / rows.precision_NKK[0, 0, 0])
    gap = evidence - (row_bounds(rows, factors, config)[0] - of_weights)
    assert 0 <= gap < 0.06


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_rows_settle_where_the_bound_is_flat(distribution):
    config = Config(n_factors=2, distribution=distribution, local_concentration=2.0, random_state=0)
    x, *_ = precincts(5, distribution=distribution)
    rows, factors = start(x, np.ones(5), config)
    before = row_bounds(rows, factors, config)
    for _ in range(25):
        moved = row_step(rows, factors, config)
        after = row_bounds(moved, factors, config)
        assert (after > before - 1e-8).all()
        rows, before = moved, after
    slope = numerical_slope(lambda m: row_bounds(replace(rows, log_mean_NK=m), factors, config).sum(), rows.log_mean_NK)
    # the steps of other links leave out how the sites' error changes with the weights
    assert np.abs(slope).max() < (1e-2 if distribution == "normal" else 0.5)


def test_steps_on_the_factors_maximise_the_bound():
    rows, factors = state(N=10)
    config = Config(n_factors=2, local_concentration=3.0, global_concentration=2.0)

    def bound(name, value, found):
        return total_bound(rows, replace(found, **{name: value}), config)

    for name, update in (("mean_KD", best_means), ("odds_K", best_odds)):
        found = update(rows, factors, config)
        slope = numerical_slope(partial(bound, name, found=found), getattr(found, name))
        assert np.abs(slope).max() < 2e-2, name
        assert total_bound(rows, found, config) > total_bound(rows, factors, config)
    bounds = [total_bound(rows, factors, config)]
    for _ in range(150):
        factors = best_spreads(rows, factors, config)
        bounds.append(total_bound(rows, factors, config))
    assert np.diff(bounds).min() > -1e-9
    both = numerical_slope(partial(bound, "cov_KDD", found=factors), factors.cov_KDD).reshape(2, 3, 3)
    assert np.abs(both + both.swapaxes(1, 2)).max() < 2e-2


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_bound_never_falls(distribution, local):
    x, *_ = precincts(8, distribution=distribution)
    model = DeconvolutionModel(n_factors=2, distribution=distribution, local=local, max_iter=3, tol=0, random_state=0)
    model.fit(x)
    assert model.n_iter_ == len(model.elbo_) > 1 and np.diff(model.elbo_).min() > -1e-6
    np.testing.assert_allclose(model.weights_.sum(1), 1)
    assert model.global_weights_.sum() == pytest.approx(1)
    seen = model.reconstruct(x[:4])
    assert np.corrcoef(seen.ravel(), x[:4].ravel())[0, 1] > 0.6
    if not local:  # sites must follow although an admixture's bound does not depend on them
        assert not model.factor_covariances_.any() and (model.local_factors_ == model.factor_means_).all()
    if distribution == "beta":
        assert (seen < 1).all()


@pytest.fixture(scope="module")
def model():
    return DeconvolutionModel(n_factors=2, local_concentration=2.0, max_iter=20, random_state=0).fit(X)


def test_rows_own_factors_are_found(model):
    """What only this model has: a row's version of a factor is nearer to the truth than the factor."""
    order = np.argsort(model.factor_means_[:, 0])
    local, mean = model.local_factors_[:, order], model.factor_means_[order]
    assert np.abs(model.weights_[:, order] - WEIGHTS).mean() < 0.12
    heavy = WEIGHTS[:, 1] > 0.5
    own, shared = (((found[heavy, 1] - LOCAL[heavy, 1]) ** 2).mean() for found in (local, mean + 0 * local))
    assert own < 0.7 * shared
    spreads = np.einsum("kdd->k", model.factor_covariances_)[order]
    assert spreads[1] > 3 * spreads[0]
    np.testing.assert_allclose(model.reconstruct(X), X, atol=0.2)


def test_new_rows_and_particles(model):
    fresh, weights, _ = precincts(8, seed=5)
    order = np.argsort(model.factor_means_[:, 0])
    assert np.abs(model.transform(fresh)[:, order] - weights).mean() < 0.1
    np.testing.assert_array_equal(model.transform(X), model.weights_)
    assert model.score(fresh) > model.score(fresh + 3)
    particles = np.full(8, 4.0)
    assert model.score(fresh, n_particles=particles) != model.score(fresh)
    again = DeconvolutionModel(n_factors=2, max_iter=1, random_state=0)
    weights = again.fit_transform(fresh, n_particles=particles)
    np.testing.assert_array_equal(weights, again.transform(fresh, particles))


def test_without_local_variance_it_is_an_admixture():
    rows, factors = state()
    nearly, without = (replace(factors, cov_KDD=scale * factors.cov_KDD) for scale in (1e-10, 0.0))
    config = Config(n_factors=2)
    admixture = row_step(rows, without, replace(config, local=False))
    np.testing.assert_allclose(row_bounds(admixture, nearly, config),
                               row_bounds(admixture, without, replace(config, local=False)), rtol=1e-6)
    np.testing.assert_allclose(row_step(rows, nearly, config).log_mean_NK, admixture.log_mean_NK, rtol=1e-6)
    np.testing.assert_allclose(given(rows, nearly).deconvolve(rows.y_ND)[1], np.tile(factors.mean_KD, (3, 1, 1)),
                               atol=1e-8)


def test_one_factor_is_a_gaussian():
    found = DeconvolutionModel(n_factors=1, mean_scale=1e4, max_iter=25, tol=1e-9).fit(X)
    np.testing.assert_allclose(found.factor_means_[0], X.mean(0), atol=1e-6)
    np.testing.assert_array_equal(found.weights_, 1)
    total = found.factor_covariances_[0] + np.diag(found.noise_)
    np.testing.assert_allclose(total, np.cov(X.T, bias=True), rtol=0.3, atol=0.1)
    shift = (X - found.factor_means_[0]) @ np.linalg.solve(total, found.factor_covariances_[0])
    np.testing.assert_allclose(found.local_factors_[:, 0], found.factor_means_[0] + shift, atol=1e-9)


def test_a_flat_stick_gives_the_digamma_condition():
    """With two factors and a flat prior, sticks set psi(alpha beta_1) - psi(alpha beta_2) to the logs' difference."""
    rows, factors = state(N=200)
    config = Config(n_factors=2, local_concentration=5.0, global_concentration=1e-9)
    found = best_odds(replace(rows, log_mean_NK=rows.log_mean_NK + np.array([1.0, 0.0])), factors, config)
    share = 1 / (1 + np.exp(-found.odds_K[0]))
    wanted = (rows.log_mean_NK[:, 0] + 1 - rows.log_mean_NK[:, 1]).mean()
    assert digamma(5 * share) - digamma(5 * (1 - share)) == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize(("option", "value", "falls"), [
    ("mean_scale", 0.01, lambda m: np.ptp(m.factor_means_, axis=0).sum()),
    ("local_scale", 1e-6, lambda m: np.einsum("kdd->", m.factor_covariances_)),
    ("local_concentration", 0.1, lambda m: -(m.weights_**2).sum()),
    ("global_concentration", 1e-4, lambda m: m.global_weights_[1]),
    ("noise", 0.9, lambda m: -((m.reconstruct(X[:12]) - X[:12]) ** 2).sum()),
])
def test_options_act(option, value, falls):
    plain, changed = (falls(DeconvolutionModel(n_factors=2, max_iter=1, random_state=0, **options).fit(X[:12]))
                      for options in ({}, {option: value}))
    assert changed < plain


def test_factors_without_rows_are_not_counted():
    found = DeconvolutionModel(n_factors=4, local_concentration=1.0, max_iter=2, random_state=0).fit(X[:20])
    assert found.n_factors_ == (found.weights_.mean(0) > 0.01).sum() <= 4
    assert found.global_weights_.sum() == pytest.approx(1)


def test_same_seed_same_bits_inputs_untouched_and_float32():
    x, particles = X[:12].copy(), np.full(12, 2.0)
    runs = [DeconvolutionModel(n_factors=2, max_iter=2, random_state=3).fit(v, n_particles=particles)
            for v in (x, x, x.astype(np.float32))]
    np.testing.assert_array_equal(runs[0].local_factors_, runs[1].local_factors_)
    np.testing.assert_array_equal(x, X[:12])
    assert (particles == 2).all()
    np.testing.assert_allclose(runs[2].weights_, runs[0].weights_, atol=1e-3)


def test_refuses():
    with pytest.raises(ValueError, match=r"X goes from -1\.0 to 1\.0; poisson expected 0\.0 to inf"):
        DeconvolutionModel(n_factors=1, distribution="poisson").fit([[1.0], [-1.0]])
    with pytest.raises(ValueError, match="beta expected"):
        DeconvolutionModel(n_factors=1, distribution="beta").fit([[1.0], [0.5]])
    with pytest.raises(ValueError, match=r"n_particles has shape \(2,\); expected \(40,\)"):
        DeconvolutionModel().fit(X, n_particles=[1, 2])
    with pytest.raises(ValueError, match="all above 0"):
        DeconvolutionModel().fit(X, n_particles=np.zeros(40))
    with pytest.raises(ValueError, match="n_samples=3 should be >= n_clusters=10"):
        DeconvolutionModel().fit(X[:3])
    for wrong in ({"n_factors": 0}, {"local_scale": 0.0}, {"distribution": "cauchy"}, {"noise": 1.0}, {"tol": -1.0}):
        with pytest.raises(ValueError, match="expected"):
            DeconvolutionModel(**wrong).fit(X)


def test_example_runs():
    given = example(torch.Generator().manual_seed(0))
    found = given["estimator"].fit(given["X"])
    assert found.local_factors_.shape == (40, 2, 3) and np.isfinite(found.elbo_).all()
    assert list(found.get_feature_names_out()) == ["deconvolutionmodel0", "deconvolutionmodel1"]
