"""Kernels against loops, the ascent of mean shift, and what lifting from a projection keeps."""

import math

import pytest
import torch

from mixwell.density.values.kde_modes import KERNELS, Config, density, example, kde_mode, mean_shift, pull

KINDS = list(KERNELS)


def planted(generator, dims=60):
    """Forty points about one centre among a hundred far apart."""
    cluster = torch.randn(40, dims, generator=generator, dtype=torch.float64) * 0.3 + 2
    return torch.cat([cluster, torch.randn(100, dims, generator=generator, dtype=torch.float64) * 5])


def profile(kind, r, power):
    return {"gaussian": math.exp(-r * r), "logistic": 4 / (math.exp(r) + 2 + math.exp(-r)),
            "sigmoid": 2 / (math.exp(r) + math.exp(-r)), "generalised_gaussian": math.exp(-(r**power))}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_density_agrees_with_a_loop(kind, generator):
    x, p = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (4, 6))
    w = torch.rand(6, generator=generator, dtype=torch.float64)
    found = density(x, p, w, Config(kernel=kind, bandwidth=1.7, power=1.3))
    for b in range(4):
        distances = [math.dist(x[b].tolist(), q) / 1.7 for q in p.tolist()]
        expected = sum(float(a) * profile(kind, r, 1.3) for a, r in zip(w, distances))
        assert abs(float(found[b]) - expected) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_mean_shift_steps_along_the_gradient(kind, generator):
    x = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    p = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    w = torch.rand(6, generator=generator, dtype=torch.float64)
    config = Config(kernel=kind, power=1.5)
    gradient = torch.autograd.grad(density(x, p, w, config).sum(), x)[0]
    step = (pull(x, p, p, w, config) - x).detach()
    cosine = torch.nn.functional.cosine_similarity(gradient, step)
    torch.testing.assert_close(cosine, torch.ones(2, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: density(x, p, w, config), (x,))


@pytest.mark.parametrize("kind", KINDS)
def test_mean_shift_never_descends(kind, generator):
    p = planted(generator, 5)
    w, config = torch.full((140,), 1 / 140, dtype=torch.float64), Config(kernel=kind, bandwidth=2.0, power=1.0)
    z = p[::10].clone() + 0.1
    values = [density(z, p, w, config)]
    for _ in range(6):
        z = mean_shift(z, p, w, config, 1)
        values.append(density(z, p, w, config))
    assert (torch.stack(values).diff(dim=0) >= -1e-12).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_lifted_mode_is_nearly_as_high_as_the_full_one(kind, generator):
    p = planted(generator)
    options = {"kernel": kind, "bandwidth": 3.0, "starts": 5}
    full = kde_mode(p, Config(**options), generator)
    near = kde_mode(p, Config(**options, dims=30), generator)
    assert near.density > 0.85 * full.density and abs(full.promised - full.density) < 1e-12
    polished = kde_mode(p, Config(**options, dims=30, polish=50), generator)
    assert polished.density > 0.99 * full.density


def test_one_centre_is_the_mode(generator):
    p = torch.randn(1, 7, generator=generator)
    found = kde_mode(p, Config(dims=3), generator)
    torch.testing.assert_close(found.point_D, p[0].double())
    assert abs(found.density - 1) < 1e-12


def test_weights_move_the_mode(generator):
    p = torch.tensor([[0.0], [10.0]])
    for heavy in (0, 1):
        weights = torch.tensor([1.0, 1.0])
        weights[heavy] = 3
        assert abs(float(kde_mode(p, Config(), generator, weights=weights).point_D) - 10 * heavy) < 1e-6


def test_starts_and_steps(generator):
    p = planted(generator, 4)
    worst = kde_mode(p, Config(bandwidth=1.0, starts=1, steps=0), generator)
    best = kde_mode(p, Config(bandwidth=1.0, starts=20, steps=200), generator)
    assert best.density > worst.density
    loose = kde_mode(p, Config(bandwidth=1.0, starts=1, tol=0.5), generator)
    assert worst.density <= loose.density <= best.density


def test_refuses(generator):
    with pytest.raises(ValueError, match="expected one of gaussian, logistic"):
        Config(kernel="box")
    with pytest.raises(ValueError, match="power is 3"):
        Config(kernel="generalised_gaussian", power=3.0)
    with pytest.raises(ValueError, match="dims is 0"):
        Config(dims=0)
    with pytest.raises(ValueError, match="expected finite rows"):
        kde_mode(torch.full((2, 2), torch.nan), Config(), generator)
    with pytest.raises(ValueError, match="expected 2 numbers, not negative"):
        kde_mode(torch.zeros(2, 2), Config(), generator, weights=torch.tensor([-1.0, 2.0]))


def test_example_runs(generator):
    assert kde_mode(**example(generator)).point_D.shape == (20,)
