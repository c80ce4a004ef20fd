"""The sparsity law against its paper's figures."""

import numpy as np
import pytest

from mixwell.scaling.laws.sparsity import Sparsity


def published(law):
    return law().curve(law.published)


def test_the_equation_as_it_stands_in_the_paper():
    p, n, d, active = Sparsity.published, 7e8, 3e10, 0.1
    loss = (p["a"] / n ** p["alpha"] + p["b"] / d ** p["beta"] + p["c"] / active ** p["lambda"]
            + p["d"] / (active ** p["delta"] * n ** p["gamma"]) + p["e"])
    assert published(Sparsity).predict({"n": n, "d": d, "active": active})[0] == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("flops, shares", [
    (1e20, [0.77, 0.87, 0.95, 0.98, 0.99]), (1e21, [0.35, 0.62, 0.84, 0.94, 0.98])])
def test_optimal_sparsity_rises_with_size_and_falls_with_compute(flops, shares):
    active = 1 - np.linspace(0, 0.995, 400)
    found = []
    for n in (0.5e9, 1e9, 3e9, 10e9, 30e9):
        losses = published(Sparsity).predict({"n": n, "active": active, "d": flops / (6 * active * n)})
        found.append(1 - active[losses.argmin()])
    assert found == pytest.approx(shares, abs=0.01)
