"""A power law with a floor."""

import numpy as np
import pytest

from mixwell.scaling.laws import saturating_power


def test_a_floor_is_told_and_bounds_what_can_be_reached():
    x = np.geomspace(1e6, 1e10, 12)
    fit = saturating_power.SaturatingPower().fit({"x": x, "loss": 40 * x**-0.2 + 1})
    assert fit.parameters == pytest.approx({"A": 40, "E": 1, "k": 0.2}, rel=1e-4)
    floor = saturating_power.SaturatingPower().curve({"A": 40.0, "k": 0.1, "E": 1.0})
    assert saturating_power.reach(floor, 1.5) == pytest.approx(80.0**10)
    assert saturating_power.reach(floor, 0.9) == np.inf
