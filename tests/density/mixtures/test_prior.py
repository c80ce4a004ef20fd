"""Modes under a prior worth some rows: steps in loops, the posterior climbs in every family, the limits are known."""

import numpy as np
import pytest

from mixwell.density import (
    BayesianGaussianMixture,
    CategoricalMixture,
    GammaMixture,
    GaussianMixture,
    NegativeBinomialMixture,
    PoissonMixture,
    PriorMixture,
    ProductMixture,
    SkewNormalMixture,
    StudentTMixture,
)
from mixwell.density.mixtures.product import Block

RNG = np.random.default_rng(0)
NUMBERS = np.vstack([RNG.normal(0, 1, (40, 2)), RNG.normal([4, 6], [1, 2], (30, 2))])
COUNTS = RNG.poisson([[1.0, 9.0, 4.0]] * 40 + [[8.0, 0.1, 5.0]] * 30).astype(float)
CODES = (RNG.random((70, 4)) < np.array([[0.95, 0.98, 0.9, 0.5]] * 40 + [[0.05, 0.1, 0.02, 0.5]] * 30)).astype(float)
CODES[:, 3] += RNG.random(70) < 0.4
MIXED = np.hstack([NUMBERS, COUNTS, CODES])
BLOCKS = [Block("numeric", GaussianMixture(covariance_type="VVI"), (0, 1)), Block("count", PoissonMixture(), (2, 3, 4)),
          Block("category", CategoricalMixture(), (5, 6, 7, 8), sizes=(2, 2, 2, 3))]
GAPS = np.where(RNG.random(NUMBERS.shape) < 0.1, np.nan, NUMBERS)
OPTIONS = {"random_state": 0, "tol": 1e-9, "max_iter": 400}
CASES = {"categories": (CategoricalMixture(2), CODES), "counts": (PoissonMixture(2), COUNTS),
         "overdispersed": (NegativeBinomialMixture(2), COUNTS), "numbers": (GaussianMixture(2, reg_covar=0), NUMBERS),
         "one shape": (GaussianMixture(2, covariance_type="VEE", reg_covar=0), NUMBERS),
         "missing": (GaussianMixture(2, covariance_type="tied", reg_covar=0), GAPS),
         "tails": (StudentTMixture(2, reg_covar=0), NUMBERS), "skewed": (SkewNormalMixture(2), NUMBERS),
         "positive": (GammaMixture(2), np.exp(NUMBERS / 4)), "mixed": (ProductMixture(2, blocks=BLOCKS), MIXED)}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def posterior(model, x, rows, a):
    """What is maximised, in nats a row, from what the mixture says of single rows."""
    with np.errstate(divide="ignore"):
        log_NK = np.log(model.predict_proba(x)) + model.score_samples(x)[:, None]
    total = model.score_samples(x).sum() + a * log_NK.sum() / rows
    return total / rows


@pytest.mark.parametrize("name", CASES)
def test_the_posterior_never_falls_and_is_the_one_that_is_meant(name):
    estimator, x = CASES[name]
    options = {**OPTIONS, "max_iter": 60} if name in ("skewed", "tails") else OPTIONS
    model = PriorMixture(estimator.set_params(**options), prior_rows=2.5).fit(x)
    rises = np.diff(model.lower_bounds_)
    assert rises.min() > -1e-9 and model.lower_bound_ == model.lower_bounds_[-1]
    assert abs(posterior(model, x, len(x), 2.5) - model.lower_bound_) < 1e-4
    likely = type(estimator)(**estimator.get_params(deep=False)).fit(x)
    assert posterior(model, x, len(x), 2.5) > posterior(likely, x, len(x), 2.5) - 1e-6
    assert model.score(x) < likely.score(x) + 1e-6


def test_the_mode_is_a_fixed_point_of_steps_in_loops():
    """Categories and counts: shares and rates of a component's own rows and a rows like the whole table."""
    a, N = 1.5, len(CODES)
    codes = PriorMixture(CategoricalMixture(2, **OPTIONS), prior_rows=a).fit(CODES)
    counts = PriorMixture(PoissonMixture(2, **OPTIONS), prior_rows=a).fit(COUNTS)
    for k in range(2):
        r_N = codes.predict_proba(CODES)[:, k]
        assert codes.weights_[k] == pytest.approx((r_N.sum() + a) / (N + 2 * a), abs=1e-5)
        for d, found_KC in enumerate(codes.estimator_.probabilities_):
            for c in range(found_KC.shape[1]):
                own, margin = r_N[CODES[:, d] == c].sum(), np.mean(CODES[:, d] == c)
                assert found_KC[k, c] == pytest.approx((own + a * margin) / (r_N.sum() + a), abs=1e-5)
        r_N = counts.predict_proba(COUNTS)[:, k]
        expected_D = (r_N @ COUNTS + a * COUNTS.mean(0)) / (r_N.sum() + a)
        np.testing.assert_allclose(counts.estimator_.rates_[k], expected_D, atol=1e-4)


def test_a_gaussian_has_seen_rows_like_the_whole_table():
    a, x = 3.0, NUMBERS
    model = PriorMixture(GaussianMixture(2, reg_covar=0, **OPTIONS), prior_rows=a).fit(x)
    for k, r_N in enumerate(model.predict_proba(x).T):
        w_N = r_N + a / len(x)
        mean = w_N @ x / w_N.sum()
        np.testing.assert_allclose(model.estimator_.means_[k], mean, atol=1e-4)
        np.testing.assert_allclose(model.estimator_.covariances_[k], (w_N[:, None] * (x - mean)).T @ (x - mean)
                                   / w_N.sum(), atol=1e-3)


def test_empty_cells_are_rare_and_not_impossible():
    rows = np.vstack([np.repeat([[0.0, 0.0, 1.0]], 12, 0), np.repeat([[1.0, 1.0, 0.0]], 12, 0)])
    likely = CategoricalMixture(2, random_state=0).fit(rows)
    mode = PriorMixture(CategoricalMixture(2, **OPTIONS)).fit(rows)
    assert min(p_KC.min() for p_KC in likely.probabilities_) < 1e-12
    assert min(p_KC.min() for p_KC in mode.estimator_.probabilities_) == pytest.approx(0.5 / 13, rel=1e-2)
    odd = np.array([[0.0, 1.0, 1.0]])
    assert likely.score(odd) < -100 and mode.score(odd) > -10


@pytest.mark.parametrize("name", ["categories", "tails", "mixed"])
def test_no_prior_is_likelihood_to_the_bit_and_a_little_is_near(name):
    estimator, x = CASES[name]
    estimator.set_params(random_state=0, tol=1e-7, max_iter=60)
    likely = type(estimator)(**estimator.get_params(deep=False)).fit(x)
    none = PriorMixture(estimator, prior_rows=0).fit(x)
    assert np.array_equal(none.predict_proba(x), likely.predict_proba(x)) and none.bic(x) == likely.bic(x)
    little = PriorMixture(estimator, prior_rows=1e-6).fit(x)
    np.testing.assert_allclose(little.predict_proba(x), likely.predict_proba(x), atol=1e-3)


def test_a_strong_prior_makes_all_components_the_whole_table():
    model = PriorMixture(PoissonMixture(2, **OPTIONS), prior_rows=1e7).fit(COUNTS)
    np.testing.assert_allclose(model.estimator_.rates_, [COUNTS.mean(0)] * 2, rtol=1e-4)
    np.testing.assert_allclose(model.weights_, 0.5, atol=1e-4)


def test_weights_are_rows_that_stand_several_times():
    times = np.arange(70) % 3
    kept = times > 0
    start = {"means_init": NUMBERS[[0, 60]], "weights_init": [0.5, 0.5], "precisions_init": [np.eye(2)] * 2}
    whole = PriorMixture(GaussianMixture(2, tol=1e-8, **start), prior_rows=2).fit(np.repeat(NUMBERS, times, 0))
    weighted = PriorMixture(GaussianMixture(2, tol=1e-8, **start), prior_rows=2)
    weighted.fit(NUMBERS[kept], sample_weight=times[kept].astype(float))
    np.testing.assert_allclose(weighted.estimator_.covariances_, whole.estimator_.covariances_, atol=1e-5)
    assert weighted.lower_bound_ == pytest.approx(whole.lower_bound_, abs=1e-7)
    drawn, labels = weighted.sample(20)
    assert drawn.shape == (20, 2) and set(labels) <= {0, 1} and len(weighted.predict(drawn)) == 20


@pytest.mark.parametrize(("model", "words"), [
    (PriorMixture(prior_rows=-1), "prior_rows=-1; expected a number of rows from 0 on"),
    (PriorMixture("full"), "estimator is str; expected a mixture such as"),
    (PriorMixture(GaussianMixture(2, batch_size=10)), "online EM climbs no posterior"),
    (PriorMixture(BayesianGaussianMixture(n_components=2)), "posteriors of its own")])
def test_what_has_no_such_mode_is_refused(model, words):
    with pytest.raises(ValueError, match=words):
        model.fit(NUMBERS)
