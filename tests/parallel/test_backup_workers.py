"""Backup workers: estimates by hand, choices by their rates, a clock that follows the arrivals."""

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression

from mixwell.core.rng import generator
from mixwell.parallel.backup_workers import (
    Chooser,
    Config,
    backup_workers,
    curvature,
    example,
    gains,
    rising,
    seen,
    trained,
)


def test_estimates_by_hand():
    grads = torch.tensor([[1.0, 2.0], [3.0, 2.0], [2.0, 5.0]]).double()
    found = seen(torch.tensor([1.0, 2.0, 6.0]), grads)
    variance = ((1 - 2) ** 2 + (2 - 3) ** 2 + (3 - 2) ** 2 + (2 - 3) ** 2 + 0 + (5 - 3) ** 2) / 2
    assert (found.loss, found.variance, found.mean_square) == (3.0, variance, 13.0)
    assert found.square == pytest.approx(13 - variance / 3)
    assert seen(torch.ones(2), torch.tensor([[1.0], [-1.0]])).square == 0
    assert curvature(found, 2.5, 0.1) == pytest.approx(2 * (0.1 * found.square - 0.5) / (0.01 * 13))
    assert curvature(found, -9.0, 0.1) < 0
    for k, gain in enumerate(gains(4.0, 6.0, 2.0, 0.1, 5).tolist(), 1):
        assert gain == pytest.approx(0.1 * (1 - 0.1) * 4 - 2 * 0.01 * 6 / 2 / k)


def test_times_rise_as_isotonic_regression_makes_them():
    values = torch.rand(12, generator=generator(0)).double()
    expected = IsotonicRegression().fit_transform(np.arange(12), values.numpy())
    np.testing.assert_allclose(rising(values), expected)


def test_a_quadratics_own_curvature_is_found():
    """Without noise the loss of a quadratic tells L to the last digit."""
    curve = 3.0

    def batches(x, number):
        return (curve * x * x / 2).expand(4), (curve * x).expand(4, 1)

    chooser = Chooser(Config(step=0.1), 4)
    x = torch.tensor([2.0]).double()
    for number in range(3):
        losses, grads = batches(x, number)
        chooser.note(losses, grads, torch.arange(1.0, 5.0))
        x = x - 0.1 * grads.mean(0)
    assert list(chooser.curves) == pytest.approx([curve, curve])
    assert chooser.durations().tolist() == [1, 2, 3, 4]
    assert chooser.next() == 2, "without noise the fewest are the best"


def test_steps_and_clock_are_those_of_a_plain_loop():
    given = {name: value.double() if torch.is_tensor(value) else value for name, value in example(generator(0)).items()}
    found = backup_workers(**{**given, "config": Config(step=0.2, waited=3)})
    x, clock = torch.zeros(2).double(), 0.0
    for number in range(8):
        order = sorted(range(4), key=lambda worker: float(given["delays_RW"][number, worker]))[:3]
        clock += float(given["delays_RW"][number, order[-1]])
        total = torch.zeros(2).double()
        for worker in order:
            for row, target in zip(given["rows_RWBD"][number, worker], given["targets_RWB"][number, worker]):
                total += (row @ x - target) * row / 3
        x = x - 0.2 * total / 3
        assert float(found.seconds_R[number]) == pytest.approx(clock)
    torch.testing.assert_close(found.weights_D, x)
    assert found.waited_R.tolist() == [3] * 8


def test_far_from_the_optimum_few_are_waited_for_and_near_it_many():
    """The noise of gradients is nothing at first and all there is at the end."""
    draws = generator(1)
    delays = -torch.rand(400, 8, generator=draws).double().log()
    noise = torch.randn(400, 8, 1, generator=draws).double()

    def batches(x, number):
        return ((x - noise[number]) ** 2 / 2).flatten(), x + noise[number]

    found = trained(torch.tensor([1000.0]).double(), batches, delays, Config(step=0.3, memory=10))
    early, late = found.waited_R[3:12].double().mean(), found.waited_R[-200:].double().mean()
    assert early < late - 1 and found.losses_R[-50:].mean() < 5


def test_when_nothing_promises_a_gain_all_are_waited_for():
    chooser = Chooser(Config(step=1.0, memory=2), 3)
    assert chooser.next() == 3
    for loss in (5.0, 4.9):
        chooser.note(torch.full((3,), loss), torch.tensor([[9.0], [-9.0], [0.1]]), torch.ones(3))
    assert chooser.next() == 3
    chooser.note(torch.full((3,), 8.0), torch.ones(3, 1), torch.ones(3))
    assert chooser.rising() and chooser.next() == 3


def test_refusals():
    with pytest.raises(ValueError, match="9 workers to wait for of 4; expected 4 at most"):
        backup_workers(**{**example(generator(0)), "config": Config(waited=9)})
    with pytest.raises(ValueError, match="memory is 0"):
        Config(memory=0)
    with pytest.raises(ValueError, match="step is 0"):
        Config(step=0.0)
    with pytest.raises(ValueError, match="waited is 0"):
        Config(waited=0)
