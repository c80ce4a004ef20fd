"""Karcher mean: no neighbour has a smaller sum of squared angles; opposite and vanishing tensors do no harm."""

import pytest
import torch

from mixwell.merge.karcher import Config, karcher


def spread(point, units):
    angles = [(unit @ (point / point.norm())).clamp(-1, 1).acos() for unit in units]
    return float(sum(angle**2 for angle in angles))


def test_no_neighbour_is_nearer_to_all(generator):
    vectors = [torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(4)]
    units = [vector / vector.norm() for vector in vectors]
    mean = karcher(vectors, None, Config(max_iter=200, tol=1e-12), generator)
    least = spread(mean, units)
    for _ in range(200):
        moved = mean + 0.01 * torch.randn(6, generator=generator, dtype=torch.float64)
        assert spread(moved, units) > least
    assert float(mean.norm()) == pytest.approx(sum(float(v.norm()) for v in vectors) / 4)
    stopped = karcher(vectors, None, Config(max_iter=0), generator)
    assert spread(stopped, units) > least


def test_two_models_meet_half_way(generator):
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(karcher([a, b], None, Config(), generator), torch.full((2,), 0.5**0.5))


def test_opposite_and_vanishing_tensors_do_no_harm(generator):
    a = torch.randn(3, 4, generator=generator)
    assert torch.isfinite(karcher([a, -a, a], None, Config(), generator)).all()
    half = karcher([a, torch.zeros_like(a)], None, Config(), generator)
    torch.testing.assert_close(half, a / 2)
    assert torch.equal(karcher([torch.zeros(2), torch.zeros(2)], None, Config(), generator), torch.zeros(2))
    assert torch.equal(karcher([a], None, Config(), generator), a)
    with pytest.raises(ValueError, match="tol 0"):
        Config(tol=0)
