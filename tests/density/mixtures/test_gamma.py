"""Gamma mixture: a step in loops against a general optimiser, scipy's fit, one population, zeros, collapse."""

import numpy as np
import pytest
import scipy.stats as st

from mixwell.density import GammaMixture
from tests.density.mixtures._columns import check_a_step, check_collapse, check_held, check_one_population, check_zeros

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def log(x, shape, scale):
    return st.gamma.logpdf(x, shape, scale=scale)


def groups():
    rng = np.random.default_rng(0)
    return rng.gamma([[2, 4]] * 60 + [[4, 1.5]] * 60, [[1, 2]] * 60 + [[2, 1]] * 60)


def one_population():
    rng = np.random.default_rng(0)
    return rng.gamma((2.0, 0.6), (3.0, 1.0), (500, 2))


def test_a_step_agrees_with_loops_and_a_general_optimiser():
    check_a_step(GammaMixture, groups(), log)


def test_one_component_is_scipys_fit():
    x = one_population()
    model = GammaMixture(1).fit(x)
    for d in range(2):
        shape, _, scale = st.gamma.fit(x[:, d], floc=0)
        assert (model.shapes_[0, d], model.scales_[0, d]) == pytest.approx((shape, scale), rel=1e-4)


def test_one_population_is_one_component():
    check_one_population(GammaMixture, one_population())


def test_held_parameters_stay_and_are_not_counted():
    check_held(GammaMixture, groups(), ("weights", "shapes", "scales"))


def test_zeros_and_equal_values():
    check_zeros(GammaMixture, groups())
    check_collapse(GammaMixture, 1e-3)
