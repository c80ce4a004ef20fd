"""Wasserstein distance between mixtures: Gaussians by scipy, every assignment, a metric, smoothing, gradients."""

import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance

from mixwell.density import GaussianMixtureDensity, mixture_wasserstein
from mixwell.density.values.mixture_wasserstein import Config, example, gaussian_wasserstein_squared
from tests.density.values._tools import mixture


def test_gaussians_agree_with_the_formula_of_matrix_roots():
    p, q = mixture(3, 3, seed=1), mixture(2, 3, seed=2)
    found = gaussian_wasserstein_squared(p.means_KD, p.covariances_KDD, q.means_KD, q.covariances_KDD)
    for k, l in np.ndindex(3, 2):
        s, t = p.covariances_KDD[k].numpy(), q.covariances_KDD[l].numpy()
        root = sqrtm(s)
        expected = float((p.means_KD[k] - q.means_KD[l]).square().sum()) + np.trace(s + t - 2 * sqrtm(root @ t @ root))
        assert float(found[k, l]) == pytest.approx(np.real(expected), rel=1e-9)


def test_equal_weights_are_an_assignment():
    p, q = mixture(4, seed=1), mixture(4, seed=2)
    p, q = (GaussianMixtureDensity(torch.full((4,), 0.25), v.means_KD, v.covariances_KDD) for v in (p, q))
    cost = gaussian_wasserstein_squared(p.means_KD, p.covariances_KDD, q.means_KD, q.covariances_KDD)
    best = min(sum(float(cost[k, l]) for k, l in enumerate(order)) / 4 for order in itertools.permutations(range(4)))
    assert float(mixture_wasserstein(p, q)[0]) == pytest.approx(np.sqrt(best), rel=1e-9)


def test_it_is_a_metric_with_couplings_of_the_weights():
    p, q, r = mixture(3, seed=1), mixture(2, seed=2), mixture(4, seed=3)
    distance, coupling = mixture_wasserstein(p, q)
    np.testing.assert_allclose(coupling.sum(1), p.weights_K, atol=1e-9)
    np.testing.assert_allclose(coupling.sum(0), q.weights_K, atol=1e-9)
    assert float(mixture_wasserstein(p, p)[0]) < 1e-6
    assert float(distance) == pytest.approx(float(mixture_wasserstein(q, p)[0]))
    assert float(distance) <= float(mixture_wasserstein(p, r)[0] + mixture_wasserstein(r, q)[0])
    moved = GaussianMixtureDensity(p.weights_K, p.means_KD + torch.tensor([3.0, 4.0]), p.covariances_KDD)
    assert float(mixture_wasserstein(p, moved)[0]) == pytest.approx(5.0)


def test_limits_one_component_and_points():
    one, two = (GaussianMixtureDensity([1.0], [[m]], [[[s**2]]]) for m, s in ((0.0, 1.0), (3.0, 2.0)))
    assert float(mixture_wasserstein(one, two)[0]) == pytest.approx(np.sqrt(10))
    a, b = [0.0, 4.0, 9.0], [1.0, 12.0]
    w, v = [0.2, 0.5, 0.3], [0.6, 0.4]
    points = [GaussianMixtureDensity(u, torch.tensor(x)[:, None], torch.full((len(x), 1, 1), 1e-12))
              for u, x in ((w, a), (v, b))]
    # on a line the same coupling is optimal for every convex cost
    coupling = mixture_wasserstein(*points)[1].numpy()
    assert (coupling * np.abs(np.subtract.outer(a, b))).sum() == pytest.approx(wasserstein_distance(a, b, w, v))


def test_gradient_agrees_with_differences_for_round_covariances_too():
    q = mixture(2, seed=2)
    means = mixture(2, seed=1).means_KD.clone().requires_grad_()
    covariances = torch.eye(2, dtype=torch.float64).repeat(2, 1, 1).requires_grad_()

    def distance(m, c):
        return mixture_wasserstein(GaussianMixtureDensity([0.3, 0.7], m, 0.5 * (c + c.mT)), q)[0]

    assert torch.autograd.gradcheck(distance, (means, covariances), atol=1e-5)


def test_smoothing_is_an_upper_bound_that_tends_to_the_distance():
    p, q = mixture(6, seed=1), mixture(5, seed=2)
    exact, _ = mixture_wasserstein(p, q)
    found = []
    for smoothing in (10.0, 0.1, 0.01):
        distance, coupling = mixture_wasserstein(p, q, Config(smoothing=smoothing))
        np.testing.assert_allclose(coupling.sum(1), p.weights_K, atol=1e-12)
        np.testing.assert_allclose(coupling.sum(0), q.weights_K, atol=1e-12)
        assert bool((coupling >= 0).all())
        found.append(float(distance))
    assert found[0] > found[1] > found[2] > float(exact) - 1e-9
    assert found[2] == pytest.approx(float(exact), rel=1e-3)
    _, coupling = mixture_wasserstein(p, q, Config(smoothing=1e6))
    np.testing.assert_allclose(coupling, torch.outer(p.weights_K, q.weights_K), atol=1e-6)
    hasty, coupling = mixture_wasserstein(p, q, Config(smoothing=0.01, max_iter=1))
    np.testing.assert_allclose(coupling.sum(1), p.weights_K, atol=1e-12)
    assert float(hasty) > found[2]


def test_refusals_and_example(generator):
    with pytest.raises(ValueError, match="2 and 3 dimensions"):
        mixture_wasserstein(mixture(), mixture(2, 3))
    with pytest.raises(ValueError, match="smoothing=-1, max_iter=1000; expected at least 0 and 1"):
        Config(smoothing=-1)
    flat = GaussianMixtureDensity([1.0], [[0.0, 0.0]], torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match=r"covariance \[0\] is not positive definite"):
        mixture_wasserstein(flat, mixture())
    assert float(mixture_wasserstein(**example(generator))[0]) > 0
