"""Negative binomial mixture: scipy's probabilities, an EM step in loops, slopes by sums, bounds, one population."""

import numpy as np
import pytest
import scipy.stats as st
import torch
from scipy.optimize import minimize_scalar
from scipy.special import gammaln

from mixwell.density import GaussianMixture, NegativeBinomialMixture, PoissonMixture, ProductMixture
from mixwell.density.mixtures.negative_binomial import LARGEST_SIZE, better_size, log_pmf, log_rising, rising_slopes
from mixwell.density.mixtures.product import Block
from tests.density.mixtures._tools import continued, softmax

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def drawn(rng, means, sizes, rows):
    """Counts (rows, columns) of one population."""
    means, sizes = np.array(means), np.array(sizes)
    return rng.negative_binomial(sizes, sizes / (sizes + means), (rows, len(means))).astype(float)


def two_groups():
    rng = np.random.default_rng(0)
    return np.vstack([drawn(rng, (3, 20), (2, 4), 60), drawn(rng, (15, 4), (6, 1.5), 60)])


def scalar(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


@pytest.mark.parametrize("mean, size", [(0.01, 0.02), (3.0, 0.7), (40.0, 12.0), (8.0, 5e3), (2e5, 3e6)])
def test_probabilities_are_scipys(mean, size):
    x = np.array([0, 1, 2, 7, 60, 1500])
    ours = log_pmf(torch.tensor(x, dtype=torch.float64), *scalar(mean, size))
    np.testing.assert_allclose(ours, st.nbinom.logpmf(x, size, size / (size + mean)), rtol=1e-6, atol=1e-8)


def test_large_sizes_are_poisson_where_gamma_functions_would_cancel():
    x = torch.arange(40, dtype=torch.float64)
    np.testing.assert_allclose(log_pmf(x, *scalar(9.0, LARGEST_SIZE)), st.poisson.logpmf(x, 9.0), atol=1e-7)
    one_side, other = (log_rising(x, *scalar(size)) for size in (1e3 * (1 - 1e-12), 1e3 * (1 + 1e-12)))
    np.testing.assert_allclose(one_side, other, atol=1e-9)


@pytest.mark.parametrize("size", [0.3, 5.0, 900.0, 1100.0, 3e4])
def test_slopes_agree_with_differences(size):
    x = torch.tensor([0.0, 1, 4, 30], dtype=torch.float64)
    first, second = rising_slopes(x, *scalar(size))
    sums_first = [sum(1 / (size + j) for j in range(int(n))) for n in x]  # log Gamma(x + s) - log Gamma(s), by hand
    sums_second = [sum(1 / (size + j) ** 2 for j in range(int(n))) for n in x]
    np.testing.assert_allclose(first, sums_first, rtol=1e-9)
    np.testing.assert_allclose(second, sums_second, rtol=1e-6)


def test_a_step_agrees_with_loops():
    """Responsibilities and means as they are defined; the size is no worse, by the whole expected log-likelihood."""
    x = two_groups()
    x[3, 1] = np.nan
    x[5, 0] = 2.5  # not whole: off the tables
    for rows in (x, np.delete(x, 5, 0)):
        model = NegativeBinomialMixture(2, random_state=0, max_iter=1, tol=0).fit(rows)
        joint = np.array([[np.log(model.weights_[k]) + sum(
            log(v, model.means_[k, d], model.sizes_[k, d]) for d, v in enumerate(row) if not np.isnan(v))
            for k in range(2)] for row in rows])
        np.testing.assert_allclose(model.score_samples(rows), np.logaddexp.reduce(joint, 1), rtol=1e-9)
        r, seen = softmax(joint), ~np.isnan(rows)
        old = model.sizes_.copy()
        continued(model, rows)
        filled = np.where(seen, rows, 0)
        np.testing.assert_allclose(model.means_, r.T @ filled / (r.T @ seen), rtol=1e-9)
        np.testing.assert_allclose(model.weights_, r.mean(0), rtol=1e-9)
        for k in range(2):
            for d in range(2):
                w = r[:, k] * seen[:, d]
                before, after = (w @ log(filled[:, d], model.means_[k, d], s) for s in (old[k, d], model.sizes_[k, d]))
                assert after > before


def log(x, mean, size):
    return gammaln(x + size) - gammaln(size) - gammaln(x + 1) + size * np.log(size / (size + mean)) + x * np.log(
        mean / (size + mean))


@pytest.mark.parametrize("old", [0.05, 1.0, 50.0])
def test_a_size_never_gets_worse_and_a_few_are_the_best(old):
    x = drawn(np.random.default_rng(1), [6.0], [2.0], 300)[:, 0]
    mean = x.mean()
    best = minimize_scalar(lambda s: -log(x, mean, np.exp(s)).sum(), bracket=(-1, 1)).x
    size, value = old, log(x, mean, old).sum()
    for _ in range(8):
        first, second = (part.sum() for part in rising_slopes(torch.tensor(x), *scalar(size)))
        size = float(better_size(*scalar(float(len(x)), x.sum(), mean), first, second, *scalar(size)))
        assert log(x, mean, size).sum() > value - 1e-9
        value = log(x, mean, size).sum()
    assert size == pytest.approx(np.exp(best), rel=1e-6)


def test_one_overdispersed_population_is_one_component():
    """Three independent columns, which Poisson components split again and again."""
    x = drawn(np.random.default_rng(0), (4, 8, 2), (1.5, 3, 0.7), 500)
    options = {"random_state": 0, "tol": 1e-5, "max_iter": 300}
    ours = [NegativeBinomialMixture(k, **options).fit(x).bic(x) for k in (1, 2, 3)]
    poisson = [PoissonMixture(k, **options).fit(x).bic(x) for k in (1, 2, 3, 4)]
    assert np.argmin(ours) == 0 and np.argmin(poisson) == 3 and ours[0] < min(poisson) - 100


def test_counts_that_are_poisson_get_the_largest_size_and_its_likelihood():
    x = np.random.default_rng(0).binomial(12, 0.5, (300, 1)).astype(float)  # varies less than a Poisson variable
    model = NegativeBinomialMixture(1, tol=1e-12).fit(x)
    assert model.sizes_[0, 0] > 1e8
    assert model.score(x) == pytest.approx(PoissonMixture(1).fit(x).score(x), abs=1e-7)


def test_held_parameters_stay_and_are_not_counted():
    x = two_groups()
    for name, free in (("weights", 8), ("means", 5), ("sizes", 5)):
        model = NegativeBinomialMixture(2, random_state=0, max_iter=2).fit(x)
        before = {part: getattr(model, f"{part}_").copy() for part in ("weights", "means", "sizes")}
        model.set_params(warm_start=True, max_iter=5, tol=0, fixed=name).fit(x)
        assert model._n_parameters() == free and np.diff(model.lower_bounds_).min() > -1e-12
        for part, value in before.items():
            assert np.array_equal(getattr(model, f"{part}_"), value) == (part == name)


def test_a_column_of_zeros_stays_finite_and_batches_are_refused():
    x = two_groups()
    x[:, 1] = 0
    assert np.isfinite(NegativeBinomialMixture(2, random_state=0).fit(x).score(x))
    with pytest.raises(ValueError, match="NegativeBinomialMixture has no online EM; leave batch_size=None"):
        NegativeBinomialMixture(2, batch_size=10).fit(x)
    assert not hasattr(NegativeBinomialMixture(2), "partial_fit")
    with pytest.raises(ValueError, match="Negative values in data passed to NegativeBinomialMixture: row 5, column 0"):
        NegativeBinomialMixture().fit(np.where(np.arange(120)[:, None] == 5, -1, x))


def test_it_is_a_block_beside_numbers():
    x = two_groups()
    both = np.column_stack([np.repeat([0.0, 8.0], 60) + np.random.default_rng(1).normal(size=120), x])
    blocks = [Block("numeric", GaussianMixture(), (0,)), Block("count", NegativeBinomialMixture(), (1, 2))]
    model = ProductMixture(2, blocks=blocks, random_state=0, tol=1e-8).fit(both)
    assert np.diff(model.lower_bounds_).min() > -1e-9
    means = model.blocks_[1].estimator.means_
    with pytest.raises(ValueError, match="ProductMixture has no online EM; leave batch_size=None"):
        ProductMixture(2, blocks=blocks, batch_size=10).fit(both)
    assert not hasattr(ProductMixture(2, blocks=blocks), "partial_fit")
    assert np.sort(means[:, 0]) == pytest.approx([x[:60, 0].mean(), x[60:, 0].mean()], rel=1e-3)


