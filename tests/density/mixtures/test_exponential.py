"""Exponential mixture: a step in loops against a general optimiser, one population, held scales."""

import numpy as np
import pytest
import scipy.stats as st

from mixwell.density import ExponentialMixture
from tests.density.mixtures._columns import check_a_step, check_held, check_one_population

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def log(x, scale):
    return st.expon.logpdf(x, scale=scale)


def groups():
    rng = np.random.default_rng(0)
    return rng.exponential([[1, 60]] * 60 + [[40, 2]] * 60)


def one_population():
    rng = np.random.default_rng(0)
    return rng.exponential((2.0, 9.0), (400, 2))


def test_a_step_agrees_with_loops_and_a_general_optimiser():
    check_a_step(ExponentialMixture, groups(), log)


def test_a_single_component_is_the_mean():
    x = groups()
    np.testing.assert_allclose(ExponentialMixture(1).fit(x).scales_[0], x.mean(0))
    assert ExponentialMixture(1).fit(x).score([[0.0, 0.0]]) == pytest.approx(-np.log(x.mean(0)).sum())
    with pytest.raises(ValueError, match="Negative values in data passed to ExponentialMixture: row 0, column 1; "
                                         "expected numbers of 0 or more"):
        ExponentialMixture(1).fit([[1.0, -2.0], [3.0, 1.0]])


def test_one_population_is_one_component():
    check_one_population(ExponentialMixture, one_population())


def test_held_parameters_stay_and_are_not_counted():
    check_held(ExponentialMixture, groups(), ("weights", "scales"))
