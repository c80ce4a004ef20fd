"""Weighted spherical interpolation: rows, columns and whole tensors against a loop, with a base and without."""

import math

import pytest
import torch

from mixwell.merge.nuslerp import Config, nuslerp, position


def dumb(a, b, t):
    cosine = float(torch.dot(a, b) / (a.norm() * b.norm()))
    theta = math.acos(cosine)
    return (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)


@pytest.fixture
def pair(generator):
    return [torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(3)]


def test_rows_columns_and_the_whole_are_arcs_of_their_own(pair, generator):
    a, b, _ = pair
    config = Config(weight=(1.0, 3.0))
    whole = nuslerp([a, b], None, config, generator)
    torch.testing.assert_close(whole.flatten(), dumb(a.flatten(), b.flatten(), 0.75))
    rows = nuslerp([a, b], None, Config(weight=(1.0, 3.0), nuslerp_flatten=False), generator)
    for row in range(3):
        torch.testing.assert_close(rows[row], dumb(a[row], b[row], 0.75))
    sides = Config(weight=(1.0, 3.0), nuslerp_flatten=False, nuslerp_row_wise=True)
    columns = nuslerp([a, b], None, sides, generator)
    for column in range(4):
        torch.testing.assert_close(columns[:, column], dumb(a[:, column], b[:, column], 0.75))


def test_with_a_base_the_arc_is_between_the_changes(pair, generator):
    a, b, base = pair
    found = nuslerp([a, b], base, Config(), generator)
    moved = dumb((a - base).flatten(), (b - base).flatten(), 0.5)
    torch.testing.assert_close(found, base + moved.view(3, 4))


def test_weights_that_cancel_meet_in_the_middle():
    assert position([1.0, -1.0]) == 0.5 and position([1.0, 3.0]) == 0.75


def test_the_gradient_is_right_and_finite_where_rows_are_parallel(pair, generator):
    a, b = (tensor.clone().requires_grad_() for tensor in pair[:2])
    config = Config(nuslerp_flatten=False)
    assert torch.autograd.gradcheck(lambda *given: nuslerp(given, None, config, generator), (a, b))
    twin = pair[0].clone().requires_grad_()
    nuslerp([twin, 2 * pair[0]], None, config, generator).sum().backward()
    assert torch.isfinite(twin.grad).all()
