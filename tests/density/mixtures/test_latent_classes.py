"""Latent class model: StepMix's values, a step in loops, columns of several kinds, weights, what is refused."""

import functools
import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax, softmax

from mixwell.density import (
    BayesianGaussianMixture,
    CategoricalMixture,
    GaussianMixture,
    LatentClassModel,
    PoissonMixture,
    ProductMixture,
)
from mixwell.density.mixtures.product import Block

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# StepMix 3.0.0 (PyPI) on `table()`, measurement="bernoulli", n_init=10, abs_tol=1e-13; structural "covariate" with
# max_iter=100, "gaussian_diag", "categorical". For each the first class's size and P(x_0 = 1), the mean log likelihood,
# then intercept and slope of the second class against the first; both means, both variances; both classes' first two
# probabilities.
STEPMIX = {
    ("covariates", 1, None, "modal"): [0.4100194, 0.8088746, -3.034217, 0.5778683, 1.36036],
    ("covariates", 2, None, "modal"): [0.4530347, 0.77456, -3.036942, 0.3972908, 1.287662],
    ("covariates", 3, None, "modal"): [0.4530347, 0.77456, -3.044302, 0.2419211, 0.8672459],
    ("covariates", 3, None, "soft"): [0.4530347, 0.77456, -3.046802, 0.2576528, 0.7999454],
    ("covariates", 3, 'bch', "modal"): [0.4530347, 0.77456, -3.03815, 0.3040572, 1.120584],
    ("covariates", 3, 'bch', "soft"): [0.4530347, 0.77456, -3.037324, 0.3211963, 1.226316],
    ("covariates", 3, 'ml', "modal"): [0.4530347, 0.77456, -3.03797, 0.3120172, 1.132392],
    ("covariates", 3, 'ml', "soft"): [0.4530347, 0.77456, -3.045369, 0.4894161, 1.839562],
    ("gaussian", 1, None, "modal"): [0.4610028, 0.7931879, -4.310885, -0.3895035, 1.098251, 0.2338304, 1.02039],
    ("gaussian", 2, None, "modal"): [0.4530347, 0.77456, -4.317055, -0.3851733, 1.080628, 0.2361016, 1.042378],
    ("gaussian", 3, None, "modal"): [0.4530347, 0.77456, -4.350069, -0.2740601, 0.993236, 0.4194798, 1.138685],
    ("gaussian", 3, None, "soft"): [0.4530347, 0.77456, -4.393579, -0.1869771, 0.9088309, 0.5800067, 1.183727],
    ("gaussian", 3, 'bch', "modal"): [0.4530347, 0.77456, -4.351111, -0.4178893, 1.100088, 0.1348941, 1.052494],
    ("gaussian", 3, 'bch', "soft"): [0.4530347, 0.77456, -4.321986, -0.3973582, 1.083083, 0.1893026, 1.058418],
    ("gaussian", 3, 'ml', "modal"): [0.4530347, 0.77456, -4.317256, -0.3856663, 1.098317, 0.2430047, 1.019079],
    ("gaussian", 3, 'ml', "soft"): [0.4530347, 0.77456, -4.322787, -0.4154185, 1.179622, 0.2184298, 0.9009474],
    ("categorical", 1, None, "modal"): [0.4500275, 0.777268, -4.103168, 0.1821116, 0.5498289, 0.517683, 0.3910412],
    ("categorical", 2, None, "modal"): [0.4530347, 0.77456, -4.103724, 0.1844083, 0.548496, 0.5171151, 0.3915131],
    ("categorical", 3, None, "modal"): [0.4530347, 0.77456, -4.104663, 0.2090909, 0.5363636, 0.5, 0.4],
    ("categorical", 3, None, "soft"): [0.4530347, 0.77456, -4.107783, 0.2326219, 0.5273147, 0.4776918, 0.4088159],
    ("categorical", 3, 'bch', "modal"): [0.4530347, 0.77456, -4.103873, 0.1760748, 0.5518399, 0.5245281, 0.3885025],
    ("categorical", 3, 'bch', "soft"): [0.4530347, 0.77456, -4.103741, 0.1855716, 0.550065, 0.5166622, 0.3899726],
    ("categorical", 3, 'ml', "modal"): [0.4530347, 0.77456, -4.103873, 0.1760748, 0.5518399, 0.5245281, 0.3885025],
    ("categorical", 3, 'ml', "soft"): [0.4530347, 0.77456, -4.111225, 0.1237329, 0.5778365, 0.5650632, 0.3683082],
}


@functools.cache
def table():
    """Five answers of two classes, a covariate, and two outcomes."""
    rng = np.random.default_rng(5)
    n = 240
    covariate = rng.normal(size=n)
    p = 1 / (1 + np.exp(-(0.4 + 1.2 * covariate)))
    own = (rng.random(n) < p).astype(int)
    likely = np.array([[.8, .75, .7, .85, .2], [.25, .3, .15, .3, .7]])[own]
    x = (rng.random((n, 5)) < likely).astype(float)
    number = rng.normal(loc=np.where(own == 1, 1.0, -0.5), scale=np.where(own == 1, 1.0, 0.6))
    category = (rng.random(n) < np.where(own == 1, .3, .7)).astype(int) + (rng.random(n) < .3)
    return x, {"covariates": covariate, "gaussian": number, "categorical": category.astype(float)}


STRUCTURAL = {"covariates": "covariates", "gaussian": GaussianMixture(covariance_type="diag", reg_covar=0.0),
              "categorical": CategoricalMixture()}


@pytest.mark.parametrize("case", STEPMIX, ids=lambda case: " ".join(map(str, case)))
def test_the_values_are_stepmixs(case):
    kind, steps, correction, assignment = case
    x, outside = table()
    z = outside[kind]
    model = LatentClassModel(2, structural=STRUCTURAL[kind], n_steps=steps, correction=correction, n_init=2,
                             assignment=assignment, tol=1e-13, max_iter=3000, random_state=0).fit(x, Z=z)
    answer = model.measurement_.probabilities_[0][:, 1]
    order = np.argsort(-answer)
    found = [model.weights_[order][0], answer[order][0], model.score(x, Z=z)]
    if kind == "covariates":
        a, b = order
        found += [model.intercept_[b] - model.intercept_[a], model.coef_[b, 0] - model.coef_[a, 0]]
    elif kind == "gaussian":
        found += [*model.outcomes_.means_[order, 0], *model.outcomes_.covariances_[order, 0]]
    else:
        found += model.outcomes_.probabilities_[0][order, :2].ravel().tolist()
    np.testing.assert_allclose(found, STEPMIX[case], rtol=2e-5, atol=2e-6)


def test_one_step_climbs_a_likelihood_that_loops_agree_with():
    x, outside = table()
    z = outside["covariates"]
    weights = np.random.default_rng(0).integers(1, 4, len(x)).astype(float)
    model = LatentClassModel(n_components=3, structural="covariates", n_init=1, random_state=0, tol=1e-7, max_iter=300)
    model.fit(x, Z=z, sample_weight=weights)
    assert np.diff(model.log_likelihoods_).min() > -1e-12
    total = 0.0
    for row, value, weight in zip(x, z, weights):
        prior = softmax([model.intercept_[k] + model.coef_[k, 0] * value for k in range(3)])
        total += weight * np.log(sum(prior[k] * np.prod([model.measurement_.probabilities_[d][k, int(v)]
                                                         for d, v in enumerate(row)]) for k in range(3)))
    assert model.score(x, Z=z, sample_weight=weights) == pytest.approx(total / weights.sum(), rel=1e-9)
    assert model.log_likelihoods_[-1] == pytest.approx(total / weights.sum(), rel=1e-6)
    free = 2 * 2 + 3 * 5
    assert model.bic(x, z, weights) == pytest.approx(free * np.log(weights.sum()) - 2 * total)
    np.testing.assert_array_equal(model.predict(x, z), model.predict_proba(x, z).argmax(1))


@pytest.mark.parametrize("steps, correction", [(1, None), (2, None), (3, "bch"), (3, "ml")])
def test_weights_count_rows_in_every_step(steps, correction):
    x, outside = table()
    z = outside["gaussian"]
    counts = np.random.default_rng(0).integers(0, 3, len(x))
    options = {"structural": STRUCTURAL["gaussian"], "n_steps": steps, "correction": correction, "tol": 1e-12,
               "max_iter": 2000, "random_state": 0, "n_init": 2}
    weighted = LatentClassModel(2, **options).fit(x, Z=z, sample_weight=counts)
    repeated = LatentClassModel(2, **options).fit(np.repeat(x, counts, 0), Z=np.repeat(z, counts))
    order = [weighted.weights_.argsort(), repeated.weights_.argsort()]
    for name in ("means_", "covariances_", "weights_"):
        one, two = (getattr(m.outcomes_, name)[o] for m, o in zip((weighted, repeated), order))
        np.testing.assert_allclose(one, two, rtol=1e-4)


def test_only_corrected_steps_find_the_outcomes_of_badly_measured_classes():
    """The naive third step pulls means together; the corrections undo that."""
    rng = np.random.default_rng(0)
    own = np.arange(4000) % 2
    x = (rng.random((4000, 4)) < np.where(own, 0.75, 0.25)[:, None]).astype(float)
    z = rng.normal(2.0 * own)
    gaps = {}
    for correction in (None, "bch", "ml"):
        model = LatentClassModel(2, structural=GaussianMixture(), n_steps=3, correction=correction, n_init=2,
                                 random_state=0).fit(x, Z=z)
        gaps[correction] = abs(np.diff(model.outcomes_.means_[:, 0])[0])
    assert gaps[None] < 1.5
    assert abs(gaps["bch"] - 2) < 0.25 and abs(gaps["ml"] - 2) < 0.25


def test_measurement_by_column_with_gaps_and_an_outcome_of_several_kinds():
    rng = np.random.default_rng(0)
    own = (rng.random(300) < 0.7).astype(int)
    x = np.column_stack([rng.normal(3.0 * own), rng.poisson(1 + 5 * own), rng.random(300) < 0.2 + 0.6 * own])
    x = x.astype(float)
    x[::7, 0] = np.nan
    pair = [Block("numeric", GaussianMixture(), (0,)), Block("count", PoissonMixture(), (1,))]
    category = Block("category", CategoricalMixture(), (2,), sizes=(2,))
    measurement, outcome = ProductMixture(blocks=[*pair, category]), ProductMixture(blocks=pair)
    z = np.column_stack([rng.normal(4.0 * own), rng.poisson(2 + 3 * own)]).astype(float)
    z[::5, 0] = np.nan
    for kind in (CategoricalMixture(), outcome):
        zs = own if kind is not outcome else z
        model = LatentClassModel(2, measurement=measurement, structural=kind, n_init=1, random_state=0).fit(x, Z=zs)
        assert np.diff(model.log_likelihoods_).min() > -1e-9
        found = model.predict(x, zs)
        assert max(np.mean(found == own), np.mean(found == 1 - own)) > 0.95
        assert model.score(x, Z=zs) == pytest.approx(model.log_likelihoods_[-1], abs=1e-5)
    numbers, counts = (block.estimator for block in model.outcomes_.blocks_)
    measured = model.measurement_.blocks_[0].estimator
    places = np.array([numbers.means_[:, 0], counts.rates_[:, 0], measured.means_[:, 0]])
    assert (places.argmax(1) == places.argmax(1)[0]).all()  # classes have one order everywhere
    assert model.weights_[places[0].argmax()] == pytest.approx(own.mean(), abs=0.03)


def test_several_covariates_in_a_table_and_a_ridge():
    x, outside = table()
    z = pd.DataFrame({"first": outside["covariates"], "second": outside["gaussian"]})
    free = LatentClassModel(2, structural="covariates", n_init=1, random_state=0).fit(x, Z=z)
    held = LatentClassModel(2, structural="covariates", n_init=1, random_state=0, ridge=1e4).fit(x, Z=z)
    assert free.coef_.shape == (2, 2) and np.abs(free.coef_).max() > 1
    assert np.abs(held.coef_).max() < 0.1
    prior = softmax(free.intercept_ + z.to_numpy() @ free.coef_.T, axis=1)
    gap = np.log(free.predict_proba(x, z)) - np.log(free.predict_proba(x))  # differ by the priors alone
    want = np.log(prior) - np.log(free.weights_)
    np.testing.assert_allclose(log_softmax(gap - want, axis=1), log_softmax(0 * want, axis=1), atol=1e-9)


def test_without_anything_outside_it_is_its_measurement_model():
    x, _ = table()
    model = LatentClassModel(2, n_init=1, random_state=0).fit(pd.DataFrame(x))
    alone = CategoricalMixture(2, n_init=1, random_state=0, tol=1e-8, max_iter=1000).fit(pd.DataFrame(x))
    assert model.score(x) == pytest.approx(alone.score(x)) and model.bic(x) == pytest.approx(alone.bic(x))
    np.testing.assert_allclose(pickle.loads(pickle.dumps(model)).predict_proba(x), alone.predict_proba(x))


@pytest.mark.parametrize("options, z, message", [
    ({"n_steps": 4}, None, "n_steps=4"),
    ({"assignment": "hard"}, None, "assignment='hard'"),
    ({"correction": "bch"}, None, "correction='bch' with n_steps=1"),
    ({"n_steps": 3, "correction": "BCH"}, None, "correction='BCH' with n_steps=3"),
    ({"ridge": -1.0}, None, "ridge=-1.0"),
    ({"structural": "covariate"}, None, r"structural is 'covariate'; expected a mixture of .* or 'covariates'"),
    ({"measurement": BayesianGaussianMixture()}, None, "measurement is BayesianGaussianMixture"),
    ({"structural": "covariates"}, None, "structural is 'covariates' and Z is not given"),
    ({}, np.ones(4), "structural is None and Z is given"),
    ({"structural": "covariates"}, np.ones(3), "Z has 3 rows; expected 4"),
    ({"structural": GaussianMixture()}, np.arange(3.0), "Z has 3 rows; expected 4"),
    ({"structural": "covariates"}, np.array([1, 2, np.nan, 4]), "Z contains NaN"),
])
def test_refusals(options, z, message):
    x = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match=message):
        LatentClassModel(2, **{"n_init": 1, "max_iter": 2, "random_state": 0} | options).fit(x, Z=z)


def test_corrections_that_leave_the_simplex_and_a_z_that_was_never_fitted():
    rng = np.random.default_rng(0)
    x = (rng.random((60, 3)) < 0.5).astype(float)
    z = LatentClassModel(2, n_init=1, random_state=0).fit(x).predict(x)  # depends on the assignment, not on the class
    with pytest.raises(ValueError, match=r"the correction makes a probability -.*; use correction='ml'"):
        LatentClassModel(2, structural=CategoricalMixture(), n_steps=3, correction="bch", n_init=1,
                         random_state=0).fit(x, Z=z)
    with pytest.raises(ValueError, match="fitted without Z"):
        LatentClassModel(2, n_init=1, random_state=0).fit(x).predict(x, z)
