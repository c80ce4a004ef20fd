"""Zero-inflated negative binomial mixture: densities in loops, the best by a general optimiser, held parameters."""

import numpy as np
import pytest
import scipy.stats as st
from scipy.optimize import minimize

from mixwell.density import (
    NegativeBinomialMixture,
    ZeroInflatedNegativeBinomialMixture,
    ZeroInflatedPoissonMixture,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def log(x, mean, size, inflation):
    counted = st.nbinom.pmf(x, size, size / (size + mean))
    return np.log((1 - inflation) * counted + inflation * (x == 0))


def drawn(rows, seed=0):
    """One population of two columns."""
    rng = np.random.default_rng(seed)
    sizes, means = np.array([5.0, 2.0]), np.array([9.0, 6.0])
    counts = rng.negative_binomial(sizes, sizes / (sizes + means), (rows, 2))
    return counts * (rng.random((rows, 2)) > 0.3).astype(float)


def test_densities_agree_with_loops():
    x = np.vstack([drawn(50), 3 * drawn(50, seed=1)])
    x[3, 1] = np.nan
    model = ZeroInflatedNegativeBinomialMixture(2, random_state=0, max_iter=2, tol=0).fit(x)
    joint = np.array([[np.log(model.weights_[k]) + sum(
        log(v, model.means_[k, d], model.sizes_[k, d], model.zero_shares_[k, d])
        for d, v in enumerate(row) if not np.isnan(v)) for k in range(2)] for row in x])
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(joint, 1), rtol=1e-9)


def test_one_component_is_what_a_general_optimiser_finds():
    x = drawn(500)
    model = ZeroInflatedNegativeBinomialMixture(1, tol=1e-12, max_iter=1000).fit(x)
    assert np.diff(model.lower_bounds_).min() > -1e-12
    for d in range(2):
        ours = model.means_[0, d], model.sizes_[0, d], model.zero_shares_[0, d]
        assert ours == pytest.approx(best(x[:, d]), rel=1e-4)


def best(x):
    """Mean, size and share of zeros of the highest likelihood."""
    def loss(p):
        return -log(x, np.exp(p[0]), np.exp(p[1]), 1 / (1 + np.exp(-p[2]))).sum()

    found = minimize(loss, [1.0, 1.0, -1.0], method="Nelder-Mead",
                     options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 5000}).x
    return np.exp(found[0]), np.exp(found[1]), 1 / (1 + np.exp(-found[2]))


def test_it_contains_its_two_limits():
    x = drawn(400)
    both = ZeroInflatedNegativeBinomialMixture(1, tol=1e-9, max_iter=500).fit(x)
    for other in (ZeroInflatedPoissonMixture(1), NegativeBinomialMixture(1)):
        assert both.score(x) > other.fit(x).score(x)
    poisson = np.random.default_rng(0).poisson(5, (400, 1)).astype(float)
    both = ZeroInflatedNegativeBinomialMixture(1, tol=1e-12, max_iter=2000).fit(poisson)
    assert both.score(poisson) >= NegativeBinomialMixture(1, tol=1e-12).fit(poisson).score(poisson) - 1e-6


def test_one_population_is_one_component():
    x = drawn(400)
    options = {"random_state": 0, "tol": 1e-5, "max_iter": 300}
    ours = [ZeroInflatedNegativeBinomialMixture(k, **options).fit(x).bic(x) for k in (1, 2)]
    assert np.argmin(ours) == 0


@pytest.mark.parametrize("name, free", [("weights", 12), ("means", 9), ("sizes", 9), ("zero_shares", 9)])
def test_held_parameters_stay_and_are_not_counted(name, free):
    x = np.vstack([drawn(60), 3 * drawn(60, seed=1)])
    model = ZeroInflatedNegativeBinomialMixture(2, random_state=0, max_iter=2).fit(x)
    parts = ("weights", "means", "sizes", "zero_shares")
    before = {part: getattr(model, f"{part}_").copy() for part in parts}
    model.set_params(warm_start=True, max_iter=4, tol=0, fixed=name).fit(x)
    assert model._n_parameters() == free and np.diff(model.lower_bounds_).min() > -1e-10
    for part, value in before.items():
        assert np.array_equal(getattr(model, f"{part}_"), value) == (part == name)
