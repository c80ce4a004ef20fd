"""Beta mixture: a step in loops against a general optimiser, bounds, one population, held parameters, collapse."""

import numpy as np
import pytest
import scipy.stats as st

from mixwell.density import BetaMixture
from tests.density.mixtures._columns import check_a_step, check_held, check_one_population

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def log(x, a, b):
    return st.beta.logpdf(x, a, b)


def groups():
    rng = np.random.default_rng(0)
    return rng.beta([[2, 9]] * 60 + [[9, 3]] * 60, [[8, 3]] * 60 + [[2, 4]] * 60)


def one_population():
    rng = np.random.default_rng(0)
    return rng.beta((2.0, 0.5), (3.0, 1.0), (500, 2))


def test_a_step_agrees_with_loops_and_a_general_optimiser():
    check_a_step(BetaMixture, groups(), log)


def test_one_population_is_one_component_and_scipys_fit():
    x = one_population()
    model = check_one_population(BetaMixture, x)
    for d in range(2):
        a, b, _, _ = st.beta.fit(x[:, d], floc=0, fscale=1)
        assert (model.alphas_[0, d], model.betas_[0, d]) == pytest.approx((a, b), rel=1e-3)


def test_held_parameters_stay_and_are_not_counted():
    check_held(BetaMixture, groups(), ("weights", "alphas", "betas"))


def test_other_bounds_scale_the_density():
    x = groups()
    one = BetaMixture(2, random_state=0).fit(x)
    other = BetaMixture(2, random_state=0, bounds=(-10, 30)).fit(40 * x - 10)
    np.testing.assert_allclose(other.score_samples(40 * x - 10), one.score_samples(x) - 2 * np.log(40), rtol=1e-8)
    drawn, _ = other.sample(500)
    assert drawn.min() > -10 and drawn.max() < 30


def test_bounds_of_the_data_and_what_lies_outside():
    x = 40 * groups()
    x[3, 1] = np.nan
    model = BetaMixture(2, random_state=0, bounds=None).fit(x)
    margin = (np.nanmax(x, 0) - np.nanmin(x, 0)) / 240
    np.testing.assert_allclose(np.array(model.bounds_).T, [np.nanmin(x, 0) - margin, np.nanmax(x, 0) + margin])
    assert np.isfinite(model.score_samples(x)).all() and np.isneginf(model.score_samples([[99.0, 20.0]])).all()
    with pytest.raises(ValueError, match="Values on or outside the bounds in data passed to BetaMixture: row 1, column "
                                         "0; expected numbers between 0 and 1, or bounds=None"):
        BetaMixture(1).fit([[0.5], [1.0], [0.2]])


def test_equal_values_give_a_component_of_the_largest_size():
    model = BetaMixture(1, min_spread=1e-2, max_iter=300, tol=0).fit(np.full((20, 1), 0.3))
    assert model.alphas_[0] + model.betas_[0] == pytest.approx(1e4, rel=0.01)


@pytest.mark.parametrize("bounds", [(0, 1, 2), (1, 0), (0, np.nan), (0, np.inf), 1.0])
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(ValueError, match=r"expected two finite numbers, the lower first|'bounds' parameter of"):
        BetaMixture(1, bounds=bounds).fit(groups())


def test_bounds_cannot_be_read_off_a_batch():
    with pytest.raises(AttributeError, match="has no attribute 'partial_fit'") as told:
        BetaMixture(1, bounds=None).partial_fit(groups())
    assert "reads the bounds off all rows, of which partial_fit sees some" in str(told.value.__cause__)
    assert np.isfinite(BetaMixture(1).partial_fit(groups()).lower_bound_)
