"""The two loops that the methods share: down a gradient, and up a bound."""

import math

import numpy as np
import pytest
import torch

from mixwell.density._ascent import Run, ascend, highest
from mixwell.density._training import cosine, descend, update


def linear(value=4.0):
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, value)
    return module


def halved(state):
    """A state comes to half its distance from one; its bound is minus the distance of the old one."""
    return (1 + state) / 2, -(1 - state)


def test_a_descent_yields_each_loss_and_makes_adams_steps():
    module, twin = linear(), linear()
    found = list(descend(module, lambda: module.weight.square().sum(), steps=3, lr=0.1))
    trusted, losses = torch.optim.Adam(twin.parameters(), lr=0.1), []
    for _ in range(3):
        loss = twin.weight.square().sum()
        losses.append(loss.item())
        trusted.zero_grad()
        loss.backward()
        trusted.step()
    assert found == losses and torch.equal(module.weight, twin.weight)


def test_the_rate_warms_up_and_falls_along_a_cosine():
    assert [cosine(s, 100, 10) for s in (0, 4, 50, 100)] == pytest.approx([0.1, 0.5, 0.5, 0.0])
    module = linear()
    list(descend(module, lambda: module.weight.sum(), steps=2, lr=1.0, warm=2))
    assert module.weight.item() == pytest.approx(4 - 0.5 - 0.5)  # Adam's first steps are as long as the rate


def test_a_clipped_step_is_as_long_as_the_clip():
    module = linear()
    update(torch.optim.SGD(module.parameters(), lr=1.0), 100 * module.weight.sum(), clip=0.5)
    assert module.weight.item() == pytest.approx(3.5, abs=1e-5)


def test_an_ascent_keeps_the_state_that_its_last_bound_belongs_to():
    run = ascend(halved, 0.0, tol=0.2, max_iter=10)
    assert run.bounds == [-1.0, -0.5, -0.25, -0.125] and run.converged and run.state == 0.875
    ahead = ascend(lambda s: ((1 + s) / 2, -(1 - s) / 2), 0.0, tol=0.2, max_iter=10, ahead=True)
    assert ahead.bounds == [-0.5, -0.25, -0.125] and ahead.state == 0.875


def test_an_ascent_that_is_cut_short_moved_on():
    run = ascend(halved, 0.0, tol=0.0, max_iter=2)
    assert run.bounds == [-1.0, -0.5] and not run.converged and run.state == 0.75


def test_a_relative_tolerance_is_a_share_of_the_bound():
    far = ascend(lambda s: (s + 1, 1000.0 + s), 0.0, tol=1e-2, max_iter=10, relative=True)
    assert len(far.bounds) == 2 and far.converged


def test_the_highest_run_is_the_first_of_equals():
    runs = [Run(name, [0.0, bound]) for name, bound in (("a", 1.0), ("b", 2.0), ("c", 2.0))]
    assert highest(runs).state == "b"
    assert math.isclose(np.max([run.bounds[-1] for run in runs]), 2.0)
