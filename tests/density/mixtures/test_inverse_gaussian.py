"""Inverse Gaussian mixture: a step in loops against a general optimiser, one population, zeros, collapse."""

import numpy as np
import pytest
import scipy.stats as st

from mixwell.density import InverseGaussianMixture
from tests.density.mixtures._columns import check_a_step, check_collapse, check_held, check_one_population, check_zeros

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def log(x, mean, shape):
    return st.invgauss.logpdf(x, mean / shape, scale=shape)


def groups():
    rng = np.random.default_rng(0)
    return rng.wald([[2, 9]] * 60 + [[20, 1.5]] * 60, [[8, 20]] * 60 + [[60, 6]] * 60)


def one_population():
    rng = np.random.default_rng(0)
    return rng.wald((2.0, 5.0), (3.0, 1.0), (500, 2))


def test_a_step_agrees_with_loops_and_a_general_optimiser():
    check_a_step(InverseGaussianMixture, groups(), log)


def test_one_component_has_the_mean_and_the_harmonic_gap():
    x = one_population()
    model = InverseGaussianMixture(1).fit(x)
    np.testing.assert_allclose(model.means_[0], x.mean(0))
    np.testing.assert_allclose(1 / model.shapes_[0], (1 / x).mean(0) - 1 / x.mean(0))


def test_one_population_is_one_component():
    check_one_population(InverseGaussianMixture, one_population())


def test_held_parameters_stay_and_are_not_counted():
    check_held(InverseGaussianMixture, groups(), ("weights", "means", "shapes"))


def test_zeros_and_equal_values():
    check_zeros(InverseGaussianMixture, groups())
    check_collapse(InverseGaussianMixture, 1e-3)
