"""Gaussian mixtures as values: algebra against quadrature, sampling and loops."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, wasserstein_distance
from sklearn.mixture import GaussianMixture as Reference

from mixwell.core.registry import family
from mixwell.density import (
    GaussianMixture,
    GaussianMixtureDensity,
    find_modes,
    mixture_wasserstein,
    orlicz_wasserstein,
    reduce_mixture,
)
from mixwell.density.values.modes import Config as ModesConfig
from mixwell.density.values.modes import log_hessian
from mixwell.density.values.orlicz_wasserstein import Config as OrliczConfig
from mixwell.density.values.reduction import Config as ReductionConfig
from mixwell.density.values.reduction import divergences


def mixture(k=3, d=2, seed=0, spread=2.0):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(k, d, d, generator=g, dtype=torch.float64)
    weights = torch.rand(k, generator=g, dtype=torch.float64) + 0.2
    return GaussianMixtureDensity(weights / weights.sum(), spread * torch.randn(k, d, generator=g, dtype=torch.float64),
                                  root @ root.mT + 0.3 * torch.eye(d))


def density(p, x):
    return sum(float(w) * multivariate_normal(m.numpy(), c.numpy()).pdf(x)
               for w, m, c in zip(p.weights_K, p.means_KD, p.covariances_KDD))


def grid(n=161, width=14.0):
    axis = torch.linspace(-width, width, n, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (2 * width / (n - 1)) ** 2


def test_log_prob_responsibilities_score_and_gradients():
    p, x = mixture(), torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    np.testing.assert_allclose(p.log_prob(x).exp().detach(), density(p, x.detach().numpy()), rtol=1e-10)
    (gradient,) = torch.autograd.grad(p.log_prob(x).sum(), x)
    np.testing.assert_allclose(p.score(x).detach(), gradient, rtol=1e-9)
    np.testing.assert_allclose(p.responsibilities(x).sum(1).detach(), 1)
    hessian = torch.autograd.functional.hessian(lambda z: p.log_prob(z[None]).sum(), x[0].detach())
    precisions = torch.linalg.inv(p.covariances_KDD)
    np.testing.assert_allclose(log_hessian(p, x[:1].detach(), precisions)[0], hessian, atol=1e-9)
    m, c = p.means_KD.clone().requires_grad_(), p.covariances_KDD.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda m, c: GaussianMixtureDensity(p.weights_K, m, 0.5 * (c + c.mT)).log_prob(
        x.detach()), (m, c))


def test_product_against_the_densities():
    p, q = mixture(2, seed=1), mixture(3, seed=2)
    x, cell = grid()
    both = (p.log_prob(x) + q.log_prob(x)).exp()
    value, log_mass = p.product(q)
    assert float(log_mass.exp()) == pytest.approx(float(both.sum() * cell), rel=1e-6)
    np.testing.assert_allclose((value.log_prob(x[::97]) + log_mass).exp(), both[::97], rtol=1e-8, atol=1e-14)


def test_convolution_affine_and_moments_against_samples():
    p, q, g = mixture(2, seed=1), mixture(2, seed=2), torch.Generator().manual_seed(0)
    n = 40_000
    total = p.sample(n, g)[0] + q.sample(n, g)[0]
    value = p.convolve(q)
    np.testing.assert_allclose(value.mean(), total.mean(0), atol=0.06)
    np.testing.assert_allclose(value.covariance(), np.cov(total.T), rtol=0.06, atol=0.1)
    a, b = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64), torch.tensor([3.0, 1.0]).double()
    x = torch.randn(5, 2, dtype=torch.float64)
    np.testing.assert_allclose(p.affine(a, b).log_prob(x @ a.T + b), p.log_prob(x) - np.log(abs(float(torch.det(a)))),
                               rtol=1e-9)


def test_marginal_and_conditional_are_the_parts_of_the_joint():
    p = mixture(3, 3)
    x = torch.randn(3, dtype=torch.float64)
    joint = p.log_prob(x[None])
    known, rest = p.marginal([2, 0]), p.condition([2, 0], x[[2, 0]])
    assert float(known.log_prob(x[None, [2, 0]]) + rest.log_prob(x[None, [1]])) == pytest.approx(float(joint))
    with pytest.raises(ValueError, match="every coordinate is known"):
        p.condition([0, 1, 2], x)


def test_refusals():
    with pytest.raises(ValueError, match=r"expected \(K,\), \(K, D\), \(K, D, D\)"):
        GaussianMixtureDensity([1.0], torch.zeros(2, 2), torch.eye(2)[None])
    with pytest.raises(ValueError, match="must sum to 1"):
        GaussianMixtureDensity([0.5, 0.6], torch.zeros(2, 1), torch.ones(2, 1, 1))
    with pytest.raises(ValueError, match=r"covariance \[0\] is not positive definite"):
        GaussianMixtureDensity([1.0], torch.zeros(1, 2), -torch.eye(2)[None]).log_prob(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="2 and 3 dimensions"):
        mixture().convolve(mixture(2, 3))
    with pytest.raises(ValueError, match="expected"):
        mixture().affine(torch.eye(3))


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("estimator", [GaussianMixture, Reference])
def test_from_fitted_estimators(kind, estimator):
    x = np.random.default_rng(0).normal(size=(100, 3)) + np.repeat([[0.0], [5.0]], 50, axis=0)
    model = estimator(2, covariance_type=kind, random_state=0).fit(x)
    value = GaussianMixtureDensity.from_estimator(model)
    np.testing.assert_allclose(value.log_prob(torch.from_numpy(x)), model.score_samples(x), rtol=1e-8)
    if estimator is GaussianMixture:
        assert torch.equal(model.as_density().means_KD, value.means_KD)


def test_modes_of_two_far_components_and_of_close_ones():
    eye = torch.eye(2).expand(2, 2, 2)
    far = GaussianMixtureDensity([0.5, 0.5], [[-3.0, 0.0], [3.0, 0.0]], eye)
    modes, logs = find_modes(far)
    assert len(modes) == 2 and bool((far.score(modes).norm(dim=1) < 1e-9).all()) and bool((logs.diff() <= 0).all())
    modes, _ = find_modes(GaussianMixtureDensity([0.5, 0.5], [[-0.5, 0.0], [0.5, 0.0]], eye))
    assert len(modes) == 1 and float(modes.norm()) < 1e-6
    p = mixture(4, seed=3)
    modes, logs = find_modes(p, ModesConfig(merge=1e-2), starts_ND=grid(21)[0])
    x, _ = grid()
    assert float(logs[0]) >= float(p.log_prob(x).max()) - 1e-9
    with pytest.raises(ValueError, match="must be positive"):
        ModesConfig(max_iter=0)


def test_reduction_keeps_mean_and_covariance_and_merges_the_close_pair():
    p = mixture(6)
    for k in (1, 3, 6):
        small = reduce_mixture(p, ReductionConfig(n_components=k))
        assert len(small.weights_K) == k
        np.testing.assert_allclose(small.mean(), p.mean(), atol=1e-10)
        np.testing.assert_allclose(small.covariance(), p.covariance(), atol=1e-9)
    means = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.1, 0.0]])
    three = GaussianMixtureDensity([0.3, 0.4, 0.3], means, torch.eye(2).expand(3, 2, 2))
    two = reduce_mixture(three, ReductionConfig(n_components=2, refine=2))
    np.testing.assert_allclose(two.means_KD[two.means_KD[:, 0].argsort(), 0], [0.05, 9.0], atol=1e-6)
    x = torch.linspace(-30, 30, 20001, dtype=torch.float64)[:, None]
    a, b = (GaussianMixtureDensity([1.0], [[m]], [[[s]]]) for m, s in ((0.0, 1.0), (1.0, 4.0)))
    expected = float((a.log_prob(x).exp() * (a.log_prob(x) - b.log_prob(x))).sum() * 0.003)
    found = divergences(a.means_KD, a.covariances_KDD, b.means_KD, b.covariances_KDD)
    assert float(found) == pytest.approx(expected, 1e-6)
    with pytest.raises(ValueError, match="n_components=0"):
        ReductionConfig(n_components=0)


def test_wasserstein_between_mixtures():
    p, q = mixture(3, seed=1), mixture(2, seed=2)
    distance, coupling = mixture_wasserstein(p, q)
    np.testing.assert_allclose(coupling.sum(1), p.weights_K, atol=1e-9)
    np.testing.assert_allclose(coupling.sum(0), q.weights_K, atol=1e-9)
    assert float(mixture_wasserstein(p, p)[0]) < 1e-6
    assert float(distance) == pytest.approx(float(mixture_wasserstein(q, p)[0]))
    one, two = (GaussianMixtureDensity([1.0], [[m]], [[[s**2]]]) for m, s in ((0.0, 1.0), (3.0, 2.0)))
    assert float(mixture_wasserstein(one, two)[0]) == pytest.approx(np.sqrt(10))
    moved = GaussianMixtureDensity(p.weights_K, p.means_KD + torch.tensor([3.0, 4.0]), p.covariances_KDD)
    assert float(mixture_wasserstein(p, moved)[0]) == pytest.approx(5.0)


def test_orlicz_wasserstein_is_wasserstein_for_powers_and_sees_far_mass():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 1)), rng.normal(size=(4, 1))
    w, v = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(4))
    w1 = orlicz_wasserstein(w, a, v, b, OrliczConfig(phi="power", order=1))
    assert w1 == pytest.approx(wasserstein_distance(a[:, 0], b[:, 0], w, v), rel=1e-6)
    exponential = orlicz_wasserstein(w, a, v, b)
    assert exponential >= w1
    assert orlicz_wasserstein(w, a, w, a) == 0
    # a mass of 1e-6 ten away: W_1 is 1e-5, the Orlicz distance solves 1e-6 (exp((10/t)^2) - 1) = 1
    far = orlicz_wasserstein([1.0], [[0.0]], [1 - 1e-6, 1e-6], [[0.0], [10.0]])
    assert far == pytest.approx(10 / np.sqrt(np.log1p(1e6)), rel=1e-6)
    with pytest.raises(ValueError, match=r"order=0\.5"):
        OrliczConfig(order=0.5)
    with pytest.raises(ValueError, match=r"expected \(K,\), \(L,\)"):
        orlicz_wasserstein([1.0], [[0.0, 1.0]], [1.0], [[0.0]])


@pytest.mark.parametrize("entry", family("density.values"), ids=lambda e: e.name.rpartition(".")[2])
def test_examples_run(entry):
    found = entry.load()(**entry.module().example(torch.Generator().manual_seed(0)))
    assert found is not None
