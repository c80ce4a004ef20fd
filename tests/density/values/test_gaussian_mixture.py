"""Gaussian mixture as a value: densities by scipy, algebra against quadrature, sampling and the parts of the joint."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture as Reference

from mixwell.density import GaussianMixture, GaussianMixtureDensity
from mixwell.density.values.gaussian_mixture import example
from tests.density.values._tools import density, grid, mixture


def test_log_prob_responsibilities_and_score():
    p = mixture()
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    np.testing.assert_allclose(p.log_prob(x).exp().detach(), density(p, x.detach().numpy()), rtol=1e-10)
    (gradient,) = torch.autograd.grad(p.log_prob(x).sum(), x)
    np.testing.assert_allclose(p.score(x).detach(), gradient, rtol=1e-9)
    np.testing.assert_allclose(p.responsibilities(x).sum(1).detach(), 1)


def test_gradients_in_the_parameters(generator):
    p, x = mixture(2), torch.randn(3, 2, generator=generator, dtype=torch.float64)
    inputs = [part.clone().requires_grad_() for part in (p.weights_K, p.means_KD, p.covariances_KDD)]

    def log_prob(w, m, c):
        return GaussianMixtureDensity(w / w.sum(), m, 0.5 * (c + c.mT)).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, inputs, fast_mode=True)


def test_product_against_the_densities():
    p, q = mixture(2, seed=1), mixture(3, seed=2)
    x, cell = grid(101)
    both = (p.log_prob(x) + q.log_prob(x)).exp()
    value, log_mass = p.product(q)
    assert float(log_mass.exp()) == pytest.approx(float(both.sum() * cell), rel=1e-6)
    np.testing.assert_allclose((value.log_prob(x[::97]) + log_mass).exp(), both[::97], rtol=1e-8, atol=1e-14)


def test_convolution_affine_and_moments_against_samples(generator):
    p, q = mixture(2, seed=1), mixture(2, seed=2)
    n = 40_000
    total = p.sample(n, generator)[0] + q.sample(n, generator)[0]
    value = p.convolve(q)
    np.testing.assert_allclose(value.mean(), total.mean(0), atol=0.06)
    np.testing.assert_allclose(value.covariance(), np.cov(total.T), rtol=0.06, atol=0.1)
    a, b = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64), torch.tensor([3.0, 1.0]).double()
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    np.testing.assert_allclose(p.affine(a, b).log_prob(x @ a.T + b), p.log_prob(x) - np.log(abs(float(torch.det(a)))),
                               rtol=1e-9)
    np.testing.assert_allclose(p.affine(torch.eye(2)[1:]).log_prob(x[:, 1:]), p.marginal([1]).log_prob(x[:, 1:]))


def test_same_generator_same_rows_with_the_components_they_come_from():
    p = GaussianMixtureDensity([0.25, 0.75], [[-50.0], [50.0]], torch.ones(2, 1, 1))
    (x, labels), (again, _) = (p.sample(400, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(x, again) and torch.equal(labels == 1, x[:, 0] > 0)
    assert 0.65 < float(labels.double().mean()) < 0.85


def test_marginal_and_conditional_are_the_parts_of_the_joint(generator):
    p = mixture(3, 3)
    x = torch.randn(3, generator=generator, dtype=torch.float64)
    joint = p.log_prob(x[None])
    known, rest = p.marginal([2, 0]), p.condition([2, 0], x[[2, 0]])
    assert float(known.log_prob(x[None, [2, 0]]) + rest.log_prob(x[None, [1]])) == pytest.approx(float(joint))


def test_one_component_is_the_normal_distribution():
    c = torch.tensor([[2.0, 0.6], [0.6, 1.0]])
    p = GaussianMixtureDensity([1.0], [[1.0, -1.0]], c[None])
    rest = p.condition([0], [3.0])
    assert float(rest.means_KD) == pytest.approx(-1 + 0.6 / 2 * 2)
    assert float(rest.covariances_KDD) == pytest.approx(1 - 0.6**2 / 2)
    assert float(rest.weights_K) == 1 and torch.equal(p.mean(), p.means_KD[0])
    np.testing.assert_allclose(p.covariance(), c)


def test_no_weight_is_no_density_however_far_the_others_are():
    eye = torch.eye(2).expand(2, 2, 2)
    p = GaussianMixtureDensity([1.0, 0.0], [[0.0, 0.0], [100.0, 0.0]], eye)
    far = torch.tensor([[100.0, 0.0]], dtype=torch.float64)
    np.testing.assert_array_equal(p.responsibilities(far), [[1.0, 0.0]])
    assert float(p.log_prob(far)) == pytest.approx(-5000 - np.log(2 * np.pi))
    np.testing.assert_array_equal(p.condition([0], [100.0]).weights_K, [1.0, 0.0])
    w = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(GaussianMixtureDensity(w, p.means_KD, eye).log_prob(0 * far).sum(), w)
    assert bool(gradient.isfinite().all())


def test_lists_are_read_in_double_precision():
    p = GaussianMixtureDensity([0.1, 0.9], [[0.1], [0.2]], [[[0.1]], [[0.2]]])
    assert p.weights_K.tolist() == [0.1, 0.9] and p.means_KD.tolist() == [[0.1], [0.2]]
    assert p.affine([[2.0]]).means_KD.tolist() == [[0.2], [0.4]] and p.covariances_KDD.flatten().tolist() == [0.1, 0.2]


def test_coordinates_may_be_truth_values():
    p = mixture(2, 3)
    assert torch.equal(p.marginal([True, False, True]).means_KD, p.means_KD[:, [0, 2]])
    known = np.array([False, True, False])
    assert torch.equal(p.condition(known, [0.5]).means_KD, p.condition([1], [0.5]).means_KD)


def test_rounding_is_no_asymmetry(generator):
    root = torch.randn(3, 8, 8, generator=generator)
    covariances = root @ root.mT * (1 + 1e-7 * torch.randn(3, 8, 8, generator=generator))
    p = GaussianMixtureDensity(torch.ones(3) / 3, torch.zeros(3, 8), covariances.double() * 1e-200)
    q = p.affine(torch.tensor([[1.0, -1.0] + 6 * [0.0], [1e6, -1e6 + 1e-3] + 6 * [0.0]], dtype=torch.float64))
    assert torch.equal(q.covariances_KDD, q.covariances_KDD.mT)


def test_numbers_that_describe_no_mixture_are_refused():
    eye = torch.eye(2).expand(2, 2, 2)
    for wrong in ([torch.nan, 1.0], [-0.5, 1.5]):
        with pytest.raises(ValueError, match="weights must not be negative and must sum to 1"):
            GaussianMixtureDensity(wrong, torch.zeros(2, 2), eye)
    with pytest.raises(ValueError, match="means_KD holds NaN or infinity"):
        GaussianMixtureDensity([0.5, 0.5], torch.full((2, 2), torch.nan), eye)
    with pytest.raises(ValueError, match="covariances_KDD holds NaN or infinity"):
        GaussianMixtureDensity([0.5, 0.5], torch.zeros(2, 2), eye / 0)
    with pytest.raises(ValueError, match=r"covariance \[1\] is not symmetric"):
        GaussianMixtureDensity([0.5, 0.5], torch.zeros(2, 2), [[[1, 0], [0, 1]], [[1, 0.5], [0, 1]]])


@pytest.mark.parametrize("name", ["log_prob", "log_joint", "responsibilities", "score"])
@pytest.mark.parametrize("shape", [(4, 1), (4, 3), (2,), (4, 3, 2)])
def test_rows_of_another_shape_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"got x of shape .*; expected \(N, 2\)"):
        getattr(mixture(), name)(torch.zeros(shape))


def test_conditions_and_products_without_density_are_refused():
    with pytest.raises(ValueError, match=r"got values \[nan\]; expected finite numbers"):
        mixture().condition([0], [torch.nan])
    with pytest.raises(ValueError, match="the density there is zero in double precision"):
        mixture().condition([0], [1e200])
    with pytest.raises(ValueError, match="the density there is zero in double precision"):
        mixture().product(mixture().affine(torch.eye(2), 1e200))


def test_refusals():
    with pytest.raises(ValueError, match=r"expected \(K,\), \(K, D\), \(K, D, D\)"):
        GaussianMixtureDensity([1.0], torch.zeros(2, 2), torch.eye(2)[None])
    with pytest.raises(ValueError, match="must sum to 1"):
        GaussianMixtureDensity([0.5, 0.6], torch.zeros(2, 1), torch.ones(2, 1, 1))
    with pytest.raises(ValueError, match=r"covariance \[0\] is not positive definite"):
        GaussianMixtureDensity([1.0], torch.zeros(1, 2), -torch.eye(2)[None]).log_prob(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="2 and 3 dimensions"):
        mixture().convolve(mixture(2, 3))
    with pytest.raises(ValueError, match=r"got a matrix of shape \(3, 3\); expected \(E, 2\)"):
        mixture().affine(torch.eye(3))
    with pytest.raises(ValueError, match="every coordinate is known"):
        mixture().condition([0, 1], [0.0, 0.0])
    with pytest.raises(ValueError, match=r"got values of shape \(2,\); expected \(1,\)"):
        mixture().condition([1], [0.0, 0.0])
    for wrong in ([-1], [2], [0, 0], [], [0.7], [True], [False, False]):
        with pytest.raises(ValueError, match="expected different whole numbers from 0 to 1"):
            mixture().marginal(wrong)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("estimator", [GaussianMixture, Reference])
def test_from_fitted_estimators(kind, estimator):
    x = np.random.default_rng(0).normal(size=(100, 3)) + np.repeat([[0.0], [5.0]], 50, axis=0)
    model = estimator(2, covariance_type=kind, random_state=0).fit(x)
    value = GaussianMixtureDensity.from_estimator(model)
    np.testing.assert_allclose(value.log_prob(torch.from_numpy(x)), model.score_samples(x), rtol=1e-8)
    if estimator is GaussianMixture:
        assert torch.equal(model.as_density().means_KD, value.means_KD)


def test_example(generator):
    p = GaussianMixtureDensity(**example(generator))
    x, cell = grid(201, 16.0)
    assert float(p.log_prob(x).exp().sum() * cell) == pytest.approx(1, abs=1e-3)
