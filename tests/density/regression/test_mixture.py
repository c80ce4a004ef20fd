"""Mixtures of regressions: flexmix's values, a loop by hand, one component as ordinary regression, refusals."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import GammaRegressor, LinearRegression, LogisticRegression, PoissonRegressor

from mixwell.density.regression._responses import gamma_spread
from mixwell.density.regression.mixture import RegressionMixture, example
from tests.density.regression._loops import dot, normal, softmax

FOLDER = Path(__file__).parent
# NPreg and patent of flexmix 2.3-18, whose vignettes print the values below
NPREG = np.genfromtxt(FOLDER / "npreg.csv", delimiter=",", names=True)
PATENT = np.genfromtxt(FOLDER / "patent.csv", delimiter=",", names=True)
SQUARE = np.column_stack([NPREG["x"], NPREG["x"] ** 2])
LINE = NPREG["x"][:, None]
FEW = {"n_init": 3, "random_state": 0}

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 2))
Z = RNG.normal(size=(60, 1))
SIGN = np.where(RNG.random(60) < 1 / (1 + np.exp(-2 * Z[:, 0])), 1.0, -1.0)
Y = 1 + SIGN * (X[:, 0] - X[:, 1]) + 0.3 * RNG.normal(size=60)


def test_gaussian_components_are_those_of_flexmix():
    model = RegressionMixture(2, variance="unbiased", **FEW).fit(SQUARE, NPREG["yn"])
    assert model.log_likelihood(SQUARE, NPREG["yn"]).sum() == pytest.approx(-642.5451, abs=2e-4)
    assert model.n_parameters() == 9
    assert model.aic(SQUARE, NPREG["yn"]) == pytest.approx(1303.09, abs=1e-3)
    assert model.bic(SQUARE, NPREG["yn"]) == pytest.approx(1332.775, abs=1e-3)
    likeliest = RegressionMixture(2, **FEW).fit(SQUARE, NPREG["yn"])
    assert likeliest.log_likelihood(SQUARE, NPREG["yn"]).sum() > -642.5321


def test_poisson_components_are_those_of_flexmix():
    model = RegressionMixture(2, family="poisson", **FEW).fit(LINE, NPREG["yp"])
    assert model.log_likelihood(LINE, NPREG["yp"]).sum() == pytest.approx(-440.641, abs=2e-3)
    assert model.bic(LINE, NPREG["yp"]) == pytest.approx(907.776, abs=5e-3) and model.n_parameters() == 5


def test_rows_in_groups_are_those_of_flexmix_and_separate_without_an_error():
    model = RegressionMixture(2, variance="unbiased", **FEW).fit(SQUARE, NPREG["yn"], groups=NPREG["id"])
    grouped = {"groups": NPREG["id"]}
    assert model.log_likelihood(SQUARE, NPREG["yn"], **grouped).sum() == pytest.approx(-561.5651, abs=2e-4)
    assert model.bic(SQUARE, NPREG["yn"], **grouped) == pytest.approx(1170.815, abs=1e-3)
    resp_NK = model.responsibilities(SQUARE, NPREG["yn"], **grouped)
    assert len(np.unique(resp_NK.argmax(1)[:100])) == len(np.unique(resp_NK.argmax(1)[100:])) == 1
    np.testing.assert_array_equal(resp_NK[0], resp_NK[3])


def test_weights_that_covariates_set_are_those_of_flexmix():
    lgrd, given = PATENT["lgrd"][:, None], {"Z": PATENT["rds"]}
    model = RegressionMixture(3, family="poisson", **FEW).fit(lgrd, PATENT["patents"], **given)
    assert model.log_likelihood(lgrd, PATENT["patents"], **given).sum() == pytest.approx(-197.675, abs=1e-3)
    assert model.bic(lgrd, PATENT["patents"], **given) == pytest.approx(437.835, abs=1e-3)
    np.testing.assert_allclose(np.sort(model.weights_), [0.184, 0.201, 0.615], atol=2e-3)
    assert model.n_parameters() == 10 and not model.gate_coef_[0].any()


def test_likelihood_and_an_em_step_agree_with_a_loop():
    options = {"n_init": 1, "random_state": 0, "tol": 0.0}
    with pytest.warns(UserWarning, match="did not converge in max_iter=2"):
        first = RegressionMixture(2, max_iter=2, **options).fit(X, Y, Z=Z)
    with pytest.warns(UserWarning, match="did not converge"):
        then = RegressionMixture(2, max_iter=3, **options).fit(X, Y, Z=Z)
    total, resp = 0.0, []
    for x, y, z in zip(X.tolist(), Y.tolist(), Z.tolist()):
        gates = softmax([dot(gate, [1.0, *z]) for gate in first.gate_coef_])
        joint = [gates[k] * normal(y - first.intercept_[k] - dot(first.coef_[k], x), first.spreads_[k])
                 for k in range(2)]
        total += math.log(sum(joint))
        resp.append([one / sum(joint) for one in joint])
    np.testing.assert_allclose(first.log_likelihood(X, Y, Z=Z).sum(), total, rtol=1e-12)
    np.testing.assert_allclose(first.responsibilities(X, Y, Z=Z), resp, atol=1e-12)
    np.testing.assert_allclose(then.lower_bounds_[2], total / 60, rtol=1e-12)
    for k in range(2):
        weight = np.array(resp)[:, k]
        line = LinearRegression().fit(X, Y, sample_weight=weight)
        np.testing.assert_allclose(then.coef_[k], line.coef_, atol=1e-8)
        variance = np.average((Y - line.predict(X)) ** 2, weights=weight)
        np.testing.assert_allclose(then.spreads_[k], variance, rtol=1e-8)


def test_covariates_of_the_weights_are_found_and_the_mean_is_the_weighted_sum():
    model = RegressionMixture(2, **FEW).fit(X, Y, Z=Z)
    assert np.diff(model.lower_bounds_).min() > -1e-12 and model.converged_
    rising = model.coef_[:, 0].argmax()
    assert model.gate_coef_[rising, 1] - model.gate_coef_[1 - rising, 1] > 1
    by_hand = (model.predict_gates(X, Z) * model.predict_components(X)).sum(1)
    np.testing.assert_allclose(model.predict(X, Z), by_hand)
    steeper = RegressionMixture(2, ridge=10.0, **FEW).fit(X, Y, Z=Z)
    assert abs(steeper.gate_coef_[1, 1]) < 0.8 * abs(model.gate_coef_[1, 1])
    assert RegressionMixture(2, **FEW).fit(X, Y).log_likelihood(X, Y).sum() < model.log_likelihood(X, Y, Z=Z).sum()


def test_weights_are_repetitions_also_of_groups():
    counts = RNG.integers(0, 4, 15).repeat(4)
    names = np.arange(15).repeat(4)
    y = 1 + (names % 2 * 2 - 1) * X[:, 0] + 0.3 * Y
    weighted = RegressionMixture(2, **FEW).fit(X, y, sample_weight=counts, groups=names)
    rows = np.repeat(np.arange(60), counts)
    copies = np.concatenate([np.arange(counts[row]) for row in range(60)])  # each copy is a group of its own
    again = {"groups": names[rows] * 10 + copies}
    repeated = RegressionMixture(2, **FEW).fit(X[rows], y[rows], **again)
    assert weighted.lower_bounds_[-1] == pytest.approx(repeated.lower_bounds_[-1], abs=1e-7)
    bic = weighted.bic(X, y, sample_weight=counts, groups=names)
    assert bic == pytest.approx(repeated.bic(X[rows], y[rows], **again), abs=1e-4)


def test_rows_that_lack_a_value_are_left_out_where_that_is_asked_for():
    x, y, z = X.copy(), Y.copy(), Z.copy()
    x[3, 1] = y[7] = z[9] = np.nan
    whole = np.setdiff1d(np.arange(60), [3, 7, 9])
    model = RegressionMixture(2, missing="leave_out", **FEW).fit(x, y, Z=z)
    bare = RegressionMixture(2, **FEW).fit(X[whole], Y[whole], Z=Z[whole])
    assert model.n_left_out_ == 3 and bare.n_left_out_ == 0
    np.testing.assert_array_equal(model.coef_, bare.coef_)
    found = model.predict(x, z)
    np.testing.assert_allclose(found[whole], bare.predict(X[whole], Z[whole]))
    assert np.isnan(found[[3, 9]]).all() and not np.isnan(found[7])
    np.testing.assert_allclose(model.responsibilities(x, y, Z=z)[7], model.predict_gates(x, z)[7])
    with pytest.raises(ValueError, match="contains NaN"):
        RegressionMixture(2).fit(x, Y)
    with pytest.raises(ValueError, match="y contains NaN"):
        RegressionMixture(2).fit(X, y)


def test_a_row_that_lacks_its_target_leaves_its_group_the_others():
    y = Y.copy()
    y[::4] = np.nan
    names, rest = np.arange(15).repeat(4), np.arange(60) % 4 > 0
    model = RegressionMixture(2, missing="leave_out", **FEW).fit(X, y, groups=names)
    bare = RegressionMixture(2, **FEW).fit(X[rest], Y[rest], groups=names[rest])
    np.testing.assert_allclose(model.log_likelihood(X, y, names), bare.log_likelihood(X[rest], Y[rest], names[rest]))


ONE = [
    ("gaussian", Y, LinearRegression()),
    ("poisson", RNG.poisson(np.exp(0.5 * X[:, 0] + 0.2)).astype(float), PoissonRegressor(alpha=0.0, tol=1e-10)),
    ("bernoulli", (RNG.random(60) < 1 / (1 + np.exp(-X[:, 0]))).astype(float), LogisticRegression(C=1e10, tol=1e-10)),
    ("gamma", RNG.gamma(3.0, np.exp(0.5 * X[:, 0] + 0.2) / 3), GammaRegressor(alpha=0.0, tol=1e-10)),
]


@pytest.mark.parametrize(("family", "y", "trusted"), ONE, ids=[case[0] for case in ONE])
def test_one_component_is_the_ordinary_regression(family, y, trusted):
    model = RegressionMixture(1, family=family, n_init=1).fit(X, y)
    trusted.fit(X, y)
    np.testing.assert_allclose(model.coef_[0], np.ravel(trusted.coef_), atol=1e-4)
    mean = model.predict(X)
    spread = model.spreads_[0]
    known = {"gaussian": lambda: stats.norm.logpdf(y, mean, spread**0.5),
             "poisson": lambda: stats.poisson.logpmf(y, mean),
             "bernoulli": lambda: stats.bernoulli.logpmf(y, mean),
             "gamma": lambda: stats.gamma.logpdf(y, 1 / spread, scale=mean * spread)}
    log = known[family]()
    np.testing.assert_allclose(model.log_likelihood(X, y), log, atol=1e-9)
    assert model.n_parameters() == 3 + (family in ("gaussian", "gamma"))


def test_a_gamma_spread_is_the_likeliest():
    y = RNG.gamma(2.5, 1.0, 400)
    ratio = y / y.mean()
    shape = 1 / gamma_spread(float((ratio - 1 - np.log(ratio)).mean()))
    assert shape == pytest.approx(stats.gamma.fit(y, floc=0)[0], rel=1e-5)
    assert gamma_spread(0.0) == 1e-6 and gamma_spread(1e9) == 1e6


def test_options_move_what_they_say():
    flat = np.zeros((4, 1)), np.array([1.0, 1.0, 2.0, 2.0])
    assert RegressionMixture(2, reg_covar=0.5, **FEW).fit(*flat).spreads_.min() == pytest.approx(0.125)
    assert RegressionMixture(2, init="kmeans", **FEW).fit(X, Y).coef_.shape == (2, 2)
    one = RegressionMixture(2, n_init=1, random_state=1).fit(X, Y)
    more = RegressionMixture(2, n_init=5, random_state=1).fit(X, Y)
    assert more.lower_bounds_[-1] >= one.lower_bounds_[-1]


@pytest.mark.parametrize(("options", "said"), [
    ({"family": "weibull"}, "family is 'weibull'; expected 'gaussian', 'poisson', 'bernoulli' or 'gamma'"),
    ({"missing": "drop"}, "missing is 'drop'; expected 'error' or 'leave_out'"),
    ({"variance": "ml"}, "variance is 'ml'"), ({"init": "best"}, "init is 'best'"),
    ({"ridge": -1.0}, "ridge=-1.0"), ({"reg_covar": 0.0}, "reg_covar is 0.0"), ({"n_init": 0}, "n_init is 0"),
    ({"n_components": 61}, "n_samples=60 rows or groups is less than n_components=61"),
])
def test_refuses_options(options, said):
    with pytest.raises(ValueError, match=said):
        RegressionMixture(**options).fit(X, Y)


@pytest.mark.parametrize(("given", "said"), [
    ({"groups": np.arange(3)}, "groups has 3 entries for 60 rows"),
    ({"groups": np.zeros((60, 2))}, r"groups has shape \(60, 2\)"),
    ({"groups": np.arange(30).repeat(2), "Z": Z}, r"Z differs within a group \(row 1\)"),
    ({"groups": np.arange(30).repeat(2), "sample_weight": np.arange(60)}, "sample_weight differs within a group"),
    ({"sample_weight": -np.ones(60)}, "expected a number of 0 or more a row"), ({"Z": Z[:5]}, "Z has 5 entries"),
])
def test_refuses_what_does_not_fit_the_rows(given, said):
    with pytest.raises(ValueError, match=said):
        RegressionMixture(2).fit(X, Y, **given)


def test_refuses_targets_that_the_family_cannot_have():
    for family, expected in (("poisson", "counts"), ("bernoulli", "zeros and ones"), ("gamma", "numbers above 0")):
        with pytest.raises(ValueError, match=f"family '{family}' takes {expected}"):
            RegressionMixture(2, family=family).fit(X, -np.abs(Y))
    with pytest.raises(ValueError, match="3 rows for 3 coefficients"):
        RegressionMixture(2, variance="unbiased").fit(X[:3], Y[:3])
    with pytest.raises(ValueError, match="nothing is left to fit"):
        RegressionMixture(2, missing="leave_out").fit(X, np.full(60, np.nan))
    model = RegressionMixture(2, n_init=1, random_state=0).fit(X, Y)
    with pytest.raises(ValueError, match="Z has 1 columns; expected 0, as in fit"):
        model.predict(X, Z)


def test_example_runs():
    made = example(torch.Generator().manual_seed(0))
    model = made["estimator"].fit(made["X"], made["y"])
    np.testing.assert_allclose(np.sort(model.coef_[:, 0]), [-2, 2], atol=0.1)
