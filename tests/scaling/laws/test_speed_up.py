"""Speed-up by interpolation."""

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.scaling.laws import speed_up


def test_speed_up_of_parallel_lines_and_outside_of_them():
    given = speed_up.example(np.random.default_rng(0))
    assert speed_up.speed_up(**given) == pytest.approx(3.0)
    outside = {"flops": np.array([1e18, 1e18]), "loss": np.array([99.0, 0.1])}
    assert np.isnan(speed_up.speed_up(given["dense"], outside)).all()
    bumpy = {"flops": np.array([1.0, 10.0, 100.0, 1000.0]), "loss": np.array([4.0, 3.0, 3.2, 2.0])}
    middle = speed_up.speed_up(bumpy, {"flops": np.array([1.0]), "loss": np.array([2.55])})
    assert middle == pytest.approx(np.exp(np.interp(-2.55, [-3.1, -2.0], np.log([100, 1000]))), rel=1e-6)
    with pytest.raises(MixwellError, match="1 dense model came"):
        speed_up.speed_up({"flops": [1.0], "loss": [1.0]}, outside)
