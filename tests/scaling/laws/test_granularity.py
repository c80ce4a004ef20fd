"""The granularity law against its paper's figures."""

import pytest

from mixwell.scaling.budget import Budget, best
from mixwell.scaling.laws.granularity import Granularity


def published(law):
    return law().curve(law.published)


def test_the_equation_as_it_stands_in_the_paper():
    p, n, d, g = Granularity.published, 7e8, 3e10, 4.0
    loss = p["c"] + (p["g"] / g ** p["gamma"] + p["a"]) / n ** p["alpha"] + p["b"] / d ** p["beta"]
    assert published(Granularity).predict({"n": n, "d": d, "g": g})[0] == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("flops, millions, tokens, granularity", [
    (2.95e18, 100, 4.37e9, 8), (1.93e20, 1000, 28.9e9, 16), (6.46e21, 7000, 137.6e9, 32)])
def test_optimal_granularity(flops, millions, tokens, granularity):
    found = best(published(Granularity), Budget(flops=flops), {"g": [1, 2, 4, 8, 16, 32, 64]})
    dense = found.columns["n"] * 12 / (4 + 8 * 64)
    assert found.columns["g"] == granularity
    assert dense == pytest.approx(millions * 1e6, rel=0.1) and found.columns["d"] == pytest.approx(tokens, rel=0.1)
