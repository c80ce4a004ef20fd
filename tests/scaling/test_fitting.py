"""Sums of exponentials fitted to runs: the objective's gradient, with and without a pull of the parameters to 0."""

import numpy as np
import pytest

from mixwell.scaling.fitting import Problem, objective


@pytest.mark.parametrize("in_logs", [True, False])
@pytest.mark.parametrize("pull", [None, 0.3])
def test_the_gradient_is_that_of_the_objective(in_logs, pull):
    rng = np.random.default_rng(0)
    terms_NKP = rng.normal(size=(7, 2, 3))
    pull_P = None if pull is None else pull * np.arange(3.0)
    losses_N = np.exp(rng.normal(size=7))
    problem = Problem(lambda _: terms_NKP, (), losses_N, rng.random(7) + 0.1, 0.5, in_logs, pull_P)
    theta_P = rng.normal(size=3)
    value, slopes_P = objective(problem, theta_P, np.empty(0))
    for place in range(3):
        step = 1e-6 * np.eye(3)[place]
        above, _ = objective(problem, theta_P + step, np.empty(0))
        below, _ = objective(problem, theta_P - step, np.empty(0))
        assert (above - below) / 2e-6 == pytest.approx(slopes_P[place], rel=1e-5, abs=1e-7)
    plain, _ = objective(problem._replace(pull_P=None), theta_P, np.empty(0))
    added = 0.0 if pull is None else 0.5 * sum(pull * place * theta_P[place] ** 2 for place in range(3))
    assert value == pytest.approx(plain + added)
