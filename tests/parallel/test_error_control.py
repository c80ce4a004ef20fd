"""Controlled error follows its recursion, loses nothing, and converges where naive compression stalls."""

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.parallel.error_control import Config, Ledger, controlled, error_control, example, opened
from tests.parallel._stalling import check_that_naive_compression_stalls, quadratics


def problem(noise=None):
    given = example(generator(0))
    names = ("x_D", "curve_CDD", "slope_CD", "noise_RCD")
    found = [given[name].double() for name in names]
    return found if noise is None else [*found[:3], noise]


@pytest.mark.parametrize("keep, strength, step", [(1, 0.1, 0.02), (2, 0.0, 0.01), (4, 0.3, 0.05)])
def test_rounds_are_those_of_a_plain_loop(keep, strength, step):
    x, curves, slopes, noises = (value.tolist() for value in problem())
    known = [[0.0] * 4 for _ in range(3)]
    owed = [[0.0] * 4 for _ in range(3)]
    for noise in noises:
        for i in range(3):
            grad = [sum(curves[i][r][c] * x[c] for c in range(4)) - slopes[i][r] + noise[i][r] for r in range(4)]
            asked = [strength * owed[i][r] + grad[r] - known[i][r] for r in range(4)]
            for r in sorted(range(4), key=lambda place: -abs(asked[place]))[:keep]:
                known[i][r] += asked[r]
            owed[i] = [owed[i][r] + grad[r] - known[i][r] for r in range(4)]
        x = [x[r] - step * sum(row[r] for row in known) / 3 for r in range(4)]
    found = error_control(*problem(), Config(keep=keep, strength=strength, step=step))
    torch.testing.assert_close(found.x_D, torch.tensor(x).double())
    torch.testing.assert_close(found.known_CD, torch.tensor(known).double())
    torch.testing.assert_close(found.owed_CD, torch.tensor(owed).double())


def test_all_entries_are_gradient_descent():
    x, curves, slopes, noise = problem()
    found = error_control(x, curves, slopes, 0 * noise, Config(keep=4, strength=0.0, step=0.05))
    for _ in range(len(noise)):
        x = x - 0.05 * (curves.mean(0) @ x - slopes.mean(0))
    torch.testing.assert_close(found.x_D, x)


def test_what_is_known_and_owed_is_all_that_was():
    """The sum of gradients is the sum of what was known, and what is owed: nothing is lost."""
    ledger, config = opened(3, torch.zeros(5)), Config(keep=1, strength=0.2)
    draws = generator(1)
    grads, told = torch.zeros(3, 5), torch.zeros(3, 5)
    for _ in range(30):
        grad = torch.randn(3, 5, generator=draws)
        ledger = controlled(ledger, grad, config)
        assert isinstance(ledger, Ledger)
        grads, told = grads + grad, told + ledger.known_CD
    torch.testing.assert_close(told + ledger.owed_CD, grads, atol=1e-4, rtol=1e-4)


def test_it_converges_where_naive_compression_stalls():
    curves, slopes, best = quadratics()
    found = error_control(torch.zeros(3).double(), curves, slopes, torch.zeros(600, 3, 3), Config(step=0.05))
    torch.testing.assert_close(found.x_D, best, rtol=0, atol=1e-6)
    check_that_naive_compression_stalls()


def test_refusals():
    with pytest.raises(ValueError, match="keep is 5 of 4 entries; expected 1 to 4"):
        error_control(*problem(), Config(keep=5))
    with pytest.raises(ValueError, match="keep is 0; expected at least 1"):
        Config(keep=0)
    with pytest.raises(ValueError, match="strength is -1"):
        Config(strength=-1.0)
    with pytest.raises(ValueError, match="step is 0"):
        Config(step=0.0)
