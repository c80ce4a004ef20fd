"""Spherical interpolation: angles divide as t says, ends are the models, parallel ones are merged linearly."""

import math

import pytest
import torch

from mixwell.merge.slerp import Config, shares, slerp


def angle(a, b):
    return math.acos(float(torch.dot(a, b) / (a.norm() * b.norm())))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_the_arc_is_divided_in_the_ratio_t(t, generator):
    a, b = (torch.randn(50, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = a / a.norm(), b / b.norm()
    point = slerp([a, b], None, Config(t=t), generator)
    assert float(point.norm()) == pytest.approx(1)
    assert angle(a, point) == pytest.approx(t * angle(a, b))


def test_ends_are_the_models_whatever_their_lengths(generator):
    a, b = 3 * torch.randn(4, 5, generator=generator), torch.randn(4, 5, generator=generator)
    torch.testing.assert_close(slerp([a, b], None, Config(t=0.0), generator), a)
    torch.testing.assert_close(slerp([a, b], None, Config(t=1.0), generator), b)


def test_parallel_vectors_are_merged_linearly_and_zeros_too(generator):
    a = torch.randn(4, 5, generator=generator)
    torch.testing.assert_close(slerp([a, 2 * a], None, Config(t=0.25), generator), 1.25 * a)
    assert shares(-0.99999, 0.3) == (0.7, 0.3)
    halves = shares(0.0, 0.5)
    found = slerp([a, torch.zeros_like(a)], None, Config(), generator)
    torch.testing.assert_close(found, a * halves[0])
