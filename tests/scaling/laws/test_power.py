"""A straight line in logarithms."""

import numpy as np
import pytest

from mixwell.scaling.laws import power, saturating_power


def test_the_line_is_that_of_least_squares_where_runs_lie_on_it():
    x = np.geomspace(1e6, 1e10, 12)
    fit = power.PowerLaw().fit({"x": x, "loss": 40 * x**-0.1})
    slope, level = np.polyfit(np.log(x), np.log(40 * x**-0.1), 1)
    assert fit.parameters == pytest.approx({"A": np.exp(level), "k": -slope})
    assert saturating_power.reach(fit, 1.0) == pytest.approx(40**10)
