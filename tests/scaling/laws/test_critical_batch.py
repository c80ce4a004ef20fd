"""Critical batches against the paper's table."""

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.scaling.laws import critical_batch, power


@pytest.mark.parametrize("size, critical", [(85e6, 745), (151e6, 955), (302e6, 1394), (604e6, 1889), (1.2e9, 2533)])
def test_critical_batches_of_the_paper(size, critical):
    table = {"batch": critical_batch.BATCHES, "steps": critical_batch.PUBLISHED[size]}
    found = critical_batch.critical_batch(table, critical_batch.Config())
    assert found.critical == pytest.approx(critical, abs=1)
    small = critical_batch.Config().smallest
    half = critical_batch.critical_batch(table, critical_batch.Config(smallest=128.0, overhead=0.5))
    assert half.critical == pytest.approx(1.5 * 128 + 0.5 * half.b / half.a)
    perfect = found.predict(small) * small / found.critical
    assert found.predict(found.critical) == pytest.approx(1.2 * perfect, rel=1e-9)


def test_critical_batch_grows_with_the_published_exponent():
    batch = critical_batch.BATCHES
    critical = [critical_batch.critical_batch({"batch": batch, "steps": steps}, critical_batch.Config()).critical
                for steps in critical_batch.PUBLISHED.values()]
    sizes = np.array(list(critical_batch.PUBLISHED)) / 1e6
    fit = power.PowerLaw().fit({"x": sizes, "loss": critical})
    assert -fit.parameters["k"] == pytest.approx(0.468, abs=0.02)
    assert fit.parameters["A"] == pytest.approx(93.2, rel=0.1)
    with pytest.raises(MixwellError, match="2 sizes of batch came"):
        critical_batch.critical_batch({"batch": [1, 2], "steps": [4, 3]}, critical_batch.Config())
    with pytest.raises(ValueError, match="overhead=0"):
        critical_batch.Config(overhead=0.0)
