"""The algebra of normals, for arrays and tensors, against scipy and quadrature."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from mixwell.density import _gaussian as normal

RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(3, 2, 2))
COVARIANCES, MEANS, ROWS = ROOT @ ROOT.swapaxes(1, 2) + np.eye(2), RNG.normal(size=(3, 2)), RNG.normal(size=(5, 2))
KINDS = [np.asarray, torch.as_tensor]


@pytest.mark.parametrize("kind", KINDS)
def test_log_densities_of_rows_under_one_and_under_several_covariances(kind):
    expected = np.stack([multivariate_normal.logpdf(ROWS, cov=c) for c in COVARIANCES])
    np.testing.assert_allclose(normal.log_prob(kind(ROWS), kind(COVARIANCES[0])), expected[0])
    np.testing.assert_allclose(normal.log_prob(kind(np.stack([ROWS] * 3)), kind(COVARIANCES)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_one_column_at_a_time_adds_up_to_a_diagonal_covariance(kind):
    scale = np.array([0.5, 2.0])
    each = normal.log_normal(kind((ROWS / scale) ** 2), kind(np.log(scale)))
    np.testing.assert_allclose(each.sum(-1), multivariate_normal.logpdf(ROWS, cov=np.diag(scale**2)))


@pytest.mark.parametrize("kind", KINDS)
def test_whitened_rows_have_their_distance_as_length(kind):
    root = normal.cholesky(kind(COVARIANCES[0]))
    square = np.asarray(normal.whiten(kind(ROWS), root)) ** 2
    np.testing.assert_allclose(square.sum(1), [r @ np.linalg.solve(COVARIANCES[0], r) for r in ROWS])
    np.testing.assert_allclose(2 * normal.log_diagonal(root), np.linalg.slogdet(COVARIANCES[0])[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_gain_is_the_regression_of_one_coordinate_on_the_other(kind):
    cross, seen = COVARIANCES[:, :1, 1:], COVARIANCES[:, 1:, 1:]
    np.testing.assert_allclose(normal.gain(kind(cross), kind(seen)), cross / seen)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_those_of_drawn_rows(kind):
    share = np.array([0.2, 0.3, 0.5])
    mean, covariance = normal.moments(kind(share), kind(MEANS), kind(COVARIANCES))
    second = sum(w * (c + np.outer(m, m)) for w, m, c in zip(share, MEANS, COVARIANCES))
    np.testing.assert_allclose(mean, share @ MEANS)
    np.testing.assert_allclose(covariance, second - np.outer(share @ MEANS, share @ MEANS))


def test_divergence_agrees_with_an_integral():
    x = np.linspace(-30, 30, 60001)[:, None]
    first, second = multivariate_normal(1.0, 2.0), multivariate_normal(-0.5, 3.0)
    integral = (first.pdf(x) * (first.logpdf(x) - second.logpdf(x))).sum() * 0.001
    square = np.array((2.0 + 1.5**2) / 3.0)
    assert normal.divergence(square, np.log(3.0 / 2.0)) == pytest.approx(integral, rel=1e-6)


def test_halves_become_equal_and_zero_keeps_a_finite_logarithm():
    for kind in KINDS:
        matrix = kind(np.array([[1.0, 2.0], [4.0, 3.0]]))
        np.testing.assert_array_equal(normal.symmetric(matrix), [[1, 3], [3, 3]])
        np.testing.assert_allclose(normal.log_positive(kind(np.array([0.0, 1.0]))), [np.log(1e-300), 0])


def test_weights_of_zero_have_gradients_that_are_finite():
    weights = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    logs = normal.log_weights(weights)
    logs[1].backward()
    assert logs.tolist() == [-np.inf, 0] and weights.grad.tolist() == [0, 1]


def test_a_covariance_without_a_root_is_named():
    with pytest.raises(ValueError, match=r"covariance \[1\] is not positive definite; add to its diagonal"):
        normal.cholesky(torch.stack([torch.eye(2), -torch.eye(2)]))
