"""Orlicz-Wasserstein distance: Wasserstein's for powers, its definition by every assignment, tiny masses far away."""

import itertools

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from mixwell.density import orlicz_wasserstein
from mixwell.density.values.orlicz_wasserstein import Config, example


def measures():
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(5)), rng.normal(size=(5, 1)), rng.dirichlet(np.ones(4)), rng.normal(size=(4, 1))


def test_power_one_is_the_wasserstein_distance():
    w, a, v, b = measures()
    found = orlicz_wasserstein(w, a, v, b, Config(phi="power", order=1))
    assert found == pytest.approx(wasserstein_distance(a[:, 0], b[:, 0], w, v), rel=1e-8)


@pytest.mark.parametrize("phi, order", [("power", 2.0), ("power", 3.0), ("exponential", 1.0), ("exponential", 2.0)])
def test_equal_weights_agree_with_every_assignment(phi, order):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(3, 2)), rng.normal(size=(3, 2)) + 1
    far = np.linalg.norm(a[:, None] - b, axis=-1)

    def cheapest(t):
        r = (far / t) ** order
        cost = r if phi == "power" else np.expm1(r)
        return min(np.mean([cost[k, l] for k, l in enumerate(p)]) for p in itertools.permutations(range(3)))

    weights = np.full(3, 1 / 3)
    t = orlicz_wasserstein(weights, a, weights, b, Config(phi=phi, order=order))
    assert cheapest(t) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("mass", [1e-3, 1e-6, 1e-9, 1e-11])
def test_tiny_masses_far_away_count(mass):
    """W_1 is 10 times the mass; the exponential one solves mass (exp((10/t)^2) - 1) = 1."""
    found = orlicz_wasserstein([0.5, 0.5], [[0.0], [1.0]], [0.5, 0.5 - mass, mass], [[0.0], [1.0], [11.0]])
    assert found == pytest.approx(10 / np.sqrt(np.log1p(1 / mass)), rel=1e-5)


def test_it_scales_with_the_atoms_and_is_zero_for_equal_measures():
    w, a, v, b = measures()
    one = orlicz_wasserstein(w, a, v, b)
    assert orlicz_wasserstein(v, 7 * b, w, 7 * a) == pytest.approx(7 * one, rel=1e-7)  # and it is symmetric
    assert one >= orlicz_wasserstein(w, a, v, b, Config(phi="power", order=2))
    assert orlicz_wasserstein(w, a, w, a) == 0
    rough = orlicz_wasserstein(w, a, v, b, Config(tol=0.2))
    assert 1e-6 < abs(rough / one - 1) < 0.2


def test_refusals_and_example(generator):
    with pytest.raises(ValueError, match=r"order=0\.5"):
        Config(order=0.5)
    with pytest.raises(ValueError, match="phi='log'; expected 'power' or 'exponential'"):
        Config(phi="log")
    with pytest.raises(ValueError, match=r"expected \(K,\), \(L,\)"):
        orlicz_wasserstein([1.0], [[0.0, 1.0]], [1.0], [[0.0]])
    with pytest.raises(ValueError, match=r"must sum to 1, got a sum of 1\.500000"):
        orlicz_wasserstein([1.5], [[0.0]], [1.0], [[0.0]])
    assert orlicz_wasserstein(**example(generator)) > 0
