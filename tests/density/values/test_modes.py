"""Modes: the Hessian by autograd, every local maximum of a grid, one mode for close components, options."""

import numpy as np
import pytest
import torch

from mixwell.density import GaussianMixtureDensity, find_modes
from mixwell.density.values.modes import Config, example, log_hessian
from tests.density.values._tools import grid, mixture


def test_hessian_agrees_with_autograd(generator):
    p, x = mixture(), torch.randn(2, 2, generator=generator, dtype=torch.float64)
    found = log_hessian(p, x, torch.linalg.inv(p.covariances_KDD))
    for row, hessian in zip(x, found):
        expected = torch.autograd.functional.hessian(lambda z: p.log_prob(z[None]).sum(), row)
        np.testing.assert_allclose(hessian, expected, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 5, 7, 11])
def test_every_peak_of_a_fine_grid_is_found(seed):
    p = mixture(5, seed=seed)
    x, _ = grid(281, 9.0)
    height = p.log_prob(x).reshape(281, 281)
    inner, around = height[1:-1, 1:-1], torch.nn.functional.max_pool2d(height[None, None], 3, 1)[0, 0]
    peaks = x.reshape(281, 281, 2)[1:-1, 1:-1][inner == around]
    modes, logs = find_modes(p)
    distance = torch.cdist(peaks, modes)
    assert len(modes) == len(peaks) == {0: 4, 5: 5, 7: 3, 11: 1}[seed]
    assert float(distance.min(1).values.max()) < 18 / 280  # one cell
    assert float(logs[0]) >= float(height.max())
    assert float(p.score(modes).norm(dim=1).max()) < 1e-9 and bool((logs.diff() <= 0).all())


def test_far_components_have_a_mode_each_and_close_ones_one():
    eye = torch.eye(2).expand(2, 2, 2)
    modes, _ = find_modes(GaussianMixtureDensity([0.5, 0.5], [[-3.0, 0.0], [3.0, 0.0]], eye))
    assert len(modes) == 2
    # two equal normals have one mode up to a distance of two standard deviations
    for half, expected in ((0.99, 1), (1.01, 2)):
        modes, _ = find_modes(GaussianMixtureDensity([0.5, 0.5], [[-half, 0.0], [half, 0.0]], eye))
        assert len(modes) == expected
    modes, logs = find_modes(GaussianMixtureDensity([1.0], [[2.0, 1.0]], eye[:1]))
    np.testing.assert_allclose(modes, [[2.0, 1.0]])
    assert float(logs) == pytest.approx(-np.log(2 * np.pi))


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_lengths_are_in_deviations_of_the_mixture(scale):
    means = scale * torch.tensor([[-0.99, 0.0], [0.99, 0.0]])
    p = GaussianMixtureDensity([0.5, 0.5], means, scale**2 * torch.eye(2).expand(2, 2, 2))
    assert len(find_modes(p, Config(max_iter=1))[0]) == 2  # ends that are 0.003 deviations apart
    assert len(find_modes(p, Config(max_iter=1, merge=0.01))[0]) == 1


@pytest.mark.parametrize("option", ["tol", "merge"])
def test_no_length_may_be_zero(option):
    with pytest.raises(ValueError, match=f"{option}=0.0"):
        Config(**{option: 0.0})


def test_saddles_are_no_modes():
    p = GaussianMixtureDensity([0.5, 0.5], [[-3.0, 0.0], [3.0, 0.0]], torch.eye(2).expand(2, 2, 2))
    modes, _ = find_modes(p, starts_ND=torch.tensor([[0.0, 1.0]]))  # its path ends between the two
    assert len(modes) == 2 and float(modes[:, 0].abs().min()) > 2


def test_options_decide_when_paths_end_and_which_ends_are_one():
    p = GaussianMixtureDensity([0.5, 0.5], [[-0.99, 0.0], [0.99, 0.0]], torch.eye(2).expand(2, 2, 2))
    assert len(find_modes(p)[0]) == 1
    for early in ({"max_iter": 1}, {"tol": 1e3}):  # ends are then still 0.003 apart
        assert len(find_modes(p, Config(**early))[0]) == 2
        assert len(find_modes(p, Config(merge=0.01, **early))[0]) == 1
    with pytest.raises(ValueError, match=r"max_iter=0, tol=1e-09, merge=0.001; all must be positive"):
        Config(max_iter=0)


def test_example(generator):
    modes, _ = find_modes(**example(generator))
    assert modes.shape == (2, 2)
