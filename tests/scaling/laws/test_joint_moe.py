"""The joint law against its paper's figures."""

import numpy as np
import pytest

from mixwell.scaling.budget import Budget, best
from mixwell.scaling.laws._experts import blocks_of, effective_experts
from mixwell.scaling.laws.joint_moe import JointMoE


def published(law):
    return law().curve(law.published)


def test_the_equation_as_it_stands_in_the_paper():
    p, n, d, e = JointMoE.published, 7e8, 3e10, 8.0
    eh = 1 / (1 / (e - 1 + 1 / (1 / p["E_start"] - 1 / p["E_max"])) + 1 / p["E_max"])
    ln = np.log(eh)
    size = p["a"] * eh ** p["delta"] * n ** (p["alpha"] + p["gamma"] * ln)
    data = p["b"] * eh ** p["omega"] * d ** (p["beta"] + p["zeta"] * ln)
    assert published(JointMoE).predict({"n": n, "d": d, "e": e})[0] == pytest.approx(size + data + p["c"], rel=1e-12)


@pytest.mark.parametrize("e, n, d", [(1, 1.7e9, 9.7e9), (8, 990e6, 17e9), (32, 669e6, 24.9e9)])
def test_compute_optimal_mixtures_of_the_joint_law(e, n, d):
    found = best(published(JointMoE), Budget(flops=1e20), {"e": [e]})
    assert found.columns["n"] == pytest.approx(n, rel=0.02) and found.columns["d"] == pytest.approx(d, rel=0.02)


def test_more_experts_lower_the_joint_law_and_one_row_memory_bounds_them():
    curve = published(JointMoE)
    losses = curve.predict({"n": np.full(3, 3e8), "d": np.full(3, 1.6e10), "e": np.array([1.0, 8.0, 32.0])})
    assert losses == pytest.approx([2.773, 2.685, 2.617], abs=1e-3)
    free = best(curve, Budget(flops=1e22), {"e": [1, 2, 4, 8, 16, 32]})
    held = best(curve, Budget(flops=1e22, memory_bytes=20e9), {"e": [1, 2, 4, 8, 16, 32]})
    assert free.columns["e"] == 32 and held.columns["e"] < 32 and held.total_parameters <= 10e9


def test_effective_experts_begin_at_start_and_saturate():
    found = effective_experts(np.array([1.0, 2.0, 1e9]), 2.0732, 290.4521)
    assert found[0] == pytest.approx(2.0732) and found[2] == pytest.approx(290.4521, rel=1e-6)
    assert found[0] < found[1] < found[2]


def test_blocks_solve_their_equation():
    parameters = np.array([1e6, 1e9, 1e12])
    blocks = blocks_of(parameters, 13, 100_514)
    width = 64 * blocks
    assert 13 * width**2 * blocks + 100_514 * width == pytest.approx(parameters, rel=1e-9)
