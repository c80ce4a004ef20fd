"""Lognormal mixture: the Gaussian mixture of logarithms, its density, blocks, zeros."""

import numpy as np
import pytest

from mixwell.density import GaussianMixture, LognormalMixture, PoissonMixture, ProductMixture
from mixwell.density.mixtures.product import Block
from tests.density.mixtures._columns import check_one_population, check_zeros

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def groups():
    rng = np.random.default_rng(0)
    return np.exp(rng.normal([[0, 3]] * 60 + [[2, 1]] * 60, 0.5))


@pytest.mark.parametrize("kind", ["full", "VEI"])
def test_it_is_the_gaussian_mixture_of_logarithms_over_the_values(kind):
    x = groups()
    x[3, 1] = np.nan
    ours = LognormalMixture(2, covariance_type=kind, random_state=0).fit(x)
    theirs = GaussianMixture(2, covariance_type=kind, random_state=0).fit(np.log(x))
    np.testing.assert_allclose(ours.means_, theirs.means_, rtol=1e-9)
    expected = theirs.score_samples(np.log(x)) - np.nansum(np.log(x), 1)
    np.testing.assert_allclose(ours.score_samples(x), expected, rtol=1e-9)
    assert ours.lower_bound_ == pytest.approx(expected.mean(), abs=1e-2)
    np.testing.assert_allclose(np.log(ours.sample(4000)[0]).mean(0), ours.weights_ @ ours.means_, atol=0.1)


def test_one_population_is_one_component_where_gaussians_find_more():
    x = np.exp(np.random.default_rng(0).normal(size=(300, 2)) @ [[1.0, 0.5], [0.0, 0.8]])
    check_one_population(LognormalMixture, x)
    gauss = [GaussianMixture(k, random_state=0).fit(x).bic(x) for k in (1, 2, 3)]
    assert np.argmin(gauss) > 0 and LognormalMixture(1).fit(x).bic(x) < min(gauss) - 100


def test_zeros():
    check_zeros(LognormalMixture, groups())
    x = groups()
    x[:3, 0] = 0
    assert np.isfinite(LognormalMixture(2, zeros="missing", random_state=0).fit(x).score(x))


def test_it_is_a_block_beside_numbers_and_counts():
    """Two blocks with means and covariances at once, each with missing values of its own."""
    rng = np.random.default_rng(1)
    group = np.repeat([0, 1], 60)
    x = np.column_stack([5 * group + rng.normal(size=120), groups(), rng.poisson(2 + 6 * group)])
    x[5, 0] = x[6, 2] = x[7, 0] = x[7, 1] = np.nan
    blocks = [Block("numeric", GaussianMixture(), (0,)), Block("numeric", LognormalMixture(), (1, 2)),
              Block("count", PoissonMixture(), (3,))]
    model = ProductMixture(2, blocks=blocks, random_state=0, tol=1e-8).fit(x)
    assert np.diff(model.lower_bounds_).min() > -1e-9
    scores = np.log(model.weights_) + sum(
        np.column_stack([single(block.estimator, k).score_samples(x[:, block.columns]) for k in range(2)])
        for block in model.blocks_)
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(scores, 1), rtol=1e-7)
    assert model.sample(50)[0][:, 1:].min() >= 0


def single(model, k):
    """A fitted mixture's component as a mixture of one."""
    import copy

    one = copy.copy(model)
    for name, value in vars(model).items():
        if name.endswith("_") and isinstance(value, np.ndarray) and len(value) == 2 and name != "weights_":
            setattr(one, name, value[[k]])
    one.weights_ = np.ones(1)
    return one.set_params(n_components=1)
