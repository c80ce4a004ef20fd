"""Where training from scratch overtakes upcycling."""

import numpy as np
import pytest

from mixwell.scaling.laws import saturating_power, upcycling


def test_scratch_overtakes_upcycling_where_both_losses_are_equal():
    upcycled = upcycling.Upcycling().curve(upcycling.example(np.random.default_rng(0))["parameters"])
    scratch = saturating_power.SaturatingPower().curve({"A": 5000.0, "k": 0.35, "E": 1.6})
    found = upcycling.threshold(upcycled, scratch, 1e10)
    own, fresh = upcycled.predict({"d1": 1e10, "d2": found}), scratch.predict({"x": found})
    assert 1e6 < found < 1e15 and own == pytest.approx(fresh, rel=2e-3)
    before = found / 2
    assert upcycled.predict({"d1": 1e10, "d2": before}) < scratch.predict({"x": before})
    assert upcycling.threshold(upcycled, scratch, 1e11) != found
    never = saturating_power.SaturatingPower().curve({"A": 5000.0, "k": 0.35, "E": 3.0})
    assert upcycling.threshold(upcycled, never, 1e10) == np.inf
    always = saturating_power.SaturatingPower().curve({"A": 1.0, "k": 0.35, "E": 0.1})
    assert upcycling.threshold(upcycled, always, 1e10) == 1e6
    slow, quick = (upcycled.predict({"d1": d1, "d2": np.array([1e9, 2e9])}) for d1 in (1e11, 1e9))
    assert slow[0] / slow[1] < quick[0] / quick[1]  # the more of the parent, the flatter
