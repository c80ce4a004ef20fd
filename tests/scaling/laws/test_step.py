"""The step law from a grid."""

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.scaling.laws import step


def test_the_step_law_is_recovered_from_a_grid_and_its_bootstrap():
    given = step.example(np.random.default_rng(0))
    found = step.step_law(**given)
    assert found.lr == pytest.approx(step.PUBLISHED.lr) and found.batch == pytest.approx(step.PUBLISHED.batch)
    lr, batch = found.predict({"n": 1e9, "d": 1e11})
    assert lr[0] == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307) and batch[0] == pytest.approx(0.58 * 1e11**0.571)
    draws = step.bootstrap(given["table"], given["config"], 10, np.random.default_rng(0))
    assert len(draws) == 10 and np.ptp([one.lr[1] for one in draws]) > 0
    narrow = step.step_law(given["table"], step.Config(plateau=0.0))
    assert narrow.lr == pytest.approx(step.PUBLISHED.lr)


def test_a_grid_that_cannot_tell_the_step_law():
    table = step.example(np.random.default_rng(0))["table"]
    one_size = {name: value[:162] for name, value in table.items()}
    with pytest.raises(MixwellError, match="2 pairs of n and d"):
        step.step_law(one_size, step.Config())
    with pytest.raises(MixwellError, match="do not vary apart"):
        step.step_law({**table, "n": table["d"]}, step.Config())
    with pytest.raises(ValueError, match="plateau is -1"):
        step.Config(plateau=-1)
