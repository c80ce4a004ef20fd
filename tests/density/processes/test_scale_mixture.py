import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import burr12, invgamma, kstest, multivariate_normal, multivariate_t
from scipy.stats import t as student_t
from sklearn.base import clone

from mixwell.density.processes.scale_mixture import (
    Config,
    ScaleMixtureProcess,
    example,
    expected_product,
    inverse_gamma_log_pdf,
    log_prior,
    network_kernel,
    wide_network,
)

RNG = np.random.default_rng(0)
X, Z = RNG.normal(size=(8, 2)), RNG.normal(size=(3, 2))
Y = np.sin(X[:, 0]) + 0.1 * RNG.normal(size=8)


def slow_kernel(x, z, config):
    """One pair of rows, the recursion with two-dimensional Gauss-Hermite quadrature."""
    node, weight = np.polynomial.hermite_e.hermegauss(120)
    weight = weight / weight.sum()

    def base(a, b):
        return config.bias_variance + config.weight_variance * a @ b / len(a)

    def phi(u):
        return np.maximum(u, 0) if config.activation == "relu" else np.vectorize(math.erf)(u)

    xx, xz, zz = base(x, x), base(x, z), base(z, z)
    for _ in range(config.depth):
        def mean(a, b, c):
            u = math.sqrt(a) * node[:, None] + 0 * node[None]
            v = c / math.sqrt(a) * node[:, None] + math.sqrt(max(b - c * c / a, 0)) * node[None]
            return (weight[:, None] * weight[None] * phi(u) * phi(v)).sum()

        w, b = config.weight_variance, config.bias_variance
        xx, xz, zz = (b + w * mean(*v) for v in ((xx, xx, xx), (xx, zz, xz), (zz, zz, zz)))
    return xz


@pytest.mark.parametrize("activation", ["relu", "erf"])
@pytest.mark.parametrize("depth", [0, 2])
def test_kernel_agrees_with_quadrature(activation, depth):
    config = Config(activation=activation, depth=depth)
    slow = [[slow_kernel(x, z, config) for z in Z] for x in X[:3]]
    np.testing.assert_allclose(network_kernel(X[:3], Z, config), slow, rtol=5e-3 if activation == "relu" else 1e-7)
    assert expected_product(np.array(2.0), np.array(2.0), np.array(2.0), "relu") == pytest.approx(1.0)  # E relu^2 = v/2


def conditional_t(config):
    """The t predictive of one new row from the joint density of all of them."""
    rows = np.vstack([X, Z[:1]])
    scale = config.beta / config.alpha * (network_kernel(rows, rows, config) + config.noise * np.eye(9))
    joint = multivariate_t(np.zeros(9), scale, df=2 * config.alpha)
    past = multivariate_t(np.zeros(8), scale[:8, :8], df=2 * config.alpha)
    return lambda y: joint.logpdf(np.r_[Y, y]) - past.logpdf(Y)


def test_inverse_gamma_predicts_the_conditional_of_a_multivariate_t():
    model = ScaleMixtureProcess(alpha=1.5, beta=0.7).fit(X, Y)
    exact = conditional_t(Config(alpha=1.5, beta=0.7))
    for y in (-2.0, 0.3, 5.0):
        assert model.log_density(Z[:1], [y])[0] == pytest.approx(exact(y), abs=1e-6)
    scale = 0.7 / 1.5 * (network_kernel(X, X, Config()) + 0.01 * np.eye(8))
    exact = multivariate_t(np.zeros(8), scale, df=3).logpdf(Y)
    assert model.log_marginal_likelihood() == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("prior", ["burr", "inverse_gamma"])
@pytest.mark.parametrize("noise_scales", [False, True])
def test_sampled_scales_agree_with_integration(prior, noise_scales):
    model = ScaleMixtureProcess(prior=prior, noise_scales=noise_scales, noise=0.05, samples=4000, random_state=0)
    model.fit(X, Y)
    pdf = invgamma(2, scale=2).pdf if prior == "inverse_gamma" else burr12(2, 2).pdf
    config = Config(prior=prior, noise=0.05)
    kernel = network_kernel(np.vstack([X, Z[:1]]), np.vstack([X, Z[:1]]), config)

    def evidence(s, y):
        cov = s * kernel[: len(y), : len(y)] + 0.05 * (s if noise_scales else 1) * np.eye(len(y))
        return pdf(s) * multivariate_normal(np.zeros(len(y)), cov, allow_singular=True).pdf(y)

    grid = np.exp(np.linspace(-7, 6, 300))
    past, joint = (np.trapezoid([evidence(s, y) for s in grid], grid) for y in (Y, np.r_[Y, 0.4]))
    assert model.log_marginal_likelihood() == pytest.approx(math.log(past), abs=0.05)
    assert model.log_density(Z[:1], [0.4])[0] == pytest.approx(math.log(joint / past), abs=0.05)
    assert model.closed_ == (prior == "inverse_gamma" and noise_scales)
    assert model.closed_ or model.effective_samples_ > 1000


def test_wide_networks_follow_students_t_and_not_the_normal():
    config = Config(alpha=1.0, beta=1.0, depth=1)
    x = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    drawn = wide_network(x, 64, 1500, config, torch.Generator().manual_seed(0))[:, 0].numpy()
    scale = math.sqrt(network_kernel(x.numpy(), x.numpy(), config)[0, 0])
    assert kstest(drawn, student_t(2, scale=scale).cdf).pvalue > 0.01
    assert kstest(drawn, "norm", (0, np.std(drawn))).pvalue < 1e-6


def test_a_sure_scale_is_the_gaussian_process():
    sure, constant = ScaleMixtureProcess(alpha=1e7, beta=1e7).fit(X, Y), ScaleMixtureProcess(prior="constant").fit(X, Y)
    kernel = network_kernel(X, X, Config()) + 0.01 * np.eye(8)
    mean = network_kernel(Z, X, Config()) @ np.linalg.solve(kernel, Y)
    np.testing.assert_allclose(constant.predict(Z), mean, rtol=1e-7)
    np.testing.assert_allclose(sure.predict(Z, return_std=True), constant.predict(Z, return_std=True), rtol=1e-4)
    np.testing.assert_allclose(sure.log_density(Z, np.ones(3)), constant.log_density(Z, np.ones(3)), rtol=1e-4)
    exact = multivariate_normal(np.zeros(8), kernel).logpdf(Y)
    assert constant.log_marginal_likelihood() == pytest.approx(exact)


def test_surprising_targets_widen_the_predictions():
    """What a Gaussian process cannot do: its variance knows the inputs alone."""
    model, constant = ScaleMixtureProcess(), ScaleMixtureProcess(prior="constant")
    calm, wild = (clone(model).fit(X, y).predict(Z, return_std=True)[1] for y in (Y, 10 * Y))
    assert (wild > 3 * calm).all()
    calm, wild = (clone(constant).fit(X, y).predict(Z, return_std=True)[1] for y in (Y, 10 * Y))
    np.testing.assert_allclose(wild, calm)


@pytest.mark.parametrize("prior", ["burr", "inverse_gamma"])
def test_priors_are_densities(prior):
    total, _ = quad(lambda s: np.exp(log_prior(np.array(s), Config(prior=prior, alpha=1.5, beta=2.5))), 0, np.inf)
    assert total == pytest.approx(1, abs=1e-6)
    assert inverse_gamma_log_pdf(np.array(0.7), 2.0, 3.0) == pytest.approx(invgamma(2, scale=3).logpdf(0.7))


def test_refuses():
    for wrong in ({"prior": "cauchy"}, {"activation": "tanh"}, {"noise": 0.0}, {"depth": -1}):
        with pytest.raises(ValueError, match="expected"):
            ScaleMixtureProcess(**wrong).fit(X, Y)
    with pytest.raises(ValueError, match=r"y has shape \(2,\); expected \(3,\)"):
        ScaleMixtureProcess().fit(X, Y).log_density(Z, [1.0, 2.0])
    with pytest.raises(ValueError, match="draws inverse gamma scales"):
        wide_network(torch.ones(1, 2), 4, 2, Config(prior="burr"), torch.Generator())


def test_example_runs():
    given = example(torch.Generator().manual_seed(0))
    assert given["estimator"].fit(given["X"], given["y"]).score(given["X"], given["y"]) > 0.9


def test_variances_of_weights_and_biases_enter_the_kernel_as_a_linear_model_has_them():
    config = Config(depth=0, weight_variance=3.0, bias_variance=0.7)
    np.testing.assert_allclose(network_kernel(X, Z, config), 0.7 + 3.0 * X @ Z.T / 2)
