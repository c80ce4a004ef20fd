"""The Bayesian Gaussian mixture against scikit-learn's, from the same starts."""

import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from sklearn import mixture

from mixwell.core.errors import MixwellError
from mixwell.density import BayesianGaussianMixture, GaussianMixture

KINDS = ("full", "tied", "diag", "spherical")
TYPES = ("dirichlet_process", "dirichlet_distribution")
ATTRIBUTES = ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_", "mean_precision_",
              "degrees_of_freedom_", "weight_concentration_", "mean_prior_", "covariance_prior_", "lower_bound_",
              "weight_concentration_prior_", "mean_precision_prior_", "degrees_of_freedom_prior_", "lower_bounds_")
COVARIANCES = {"full": [[2.0, 0.3, 0], [0.3, 1, 0], [0, 0, 3]], "diag": [2.0, 1.0, 3.0], "spherical": 1.5}
COVARIANCES["tied"] = COVARIANCES["full"]

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def rows(n=150):
    rng = np.random.default_rng(3)
    centres_ND = np.repeat([[0.0, 20, 5], [4, 20, -5], [-2, 26, 0]], n // 3, 0)
    return centres_ND + rng.normal(size=(n, 3)) * [1, 2, 0.5]


def compare(ours, theirs, x_ND, rtol=1e-6):
    for name in ATTRIBUTES:
        mine, other = getattr(ours, name), getattr(theirs, name)
        if name == "lower_bounds_":  # lists of numbers, or where tied of arrays of one
            other = np.ravel(other)
        np.testing.assert_allclose(mine, other, rtol=rtol, atol=1e-8, err_msg=name)
    assert ours.n_iter_ == theirs.n_iter_ and ours.converged_ == theirs.converged_
    np.testing.assert_allclose(ours.score_samples(x_ND), theirs.score_samples(x_ND), rtol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(x_ND), theirs.predict_proba(x_ND), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prior", TYPES)
@pytest.mark.parametrize("init", ("kmeans", "k-means++", "random", "random_from_data"))
def test_every_number_is_scikit_learns(kind, prior, init):
    x_ND = rows()
    if kind == "tied" and init in ("k-means++", "random_from_data"):
        pytest.skip("scikit-learn starts from the scatter of rows that no component has yet")
    options = {"n_components": 4, "covariance_type": kind, "weight_concentration_prior_type": prior,
               "init_params": init, "random_state": 1, "max_iter": 12, "n_init": 1}
    compare(BayesianGaussianMixture(**options).fit(x_ND), mixture.BayesianGaussianMixture(**options).fit(x_ND), x_ND)


@pytest.mark.parametrize("kind", KINDS)
def test_given_priors_are_scikit_learns(kind):
    x_ND = rows()
    options = {"n_components": 3, "covariance_type": kind, "weight_concentration_prior": 0.05, "reg_covar": 1e-2,
               "mean_precision_prior": 7.0, "mean_prior": [1.0, 18.0, 2.0], "degrees_of_freedom_prior": 9.5,
               "covariance_prior": COVARIANCES[kind], "random_state": 0, "tol": 1e-2, "verbose": 0,
               "verbose_interval": 3}
    compare(BayesianGaussianMixture(**options).fit(x_ND), mixture.BayesianGaussianMixture(**options).fit(x_ND), x_ND)


def test_a_warm_start_goes_on_where_the_fit_stopped():
    x_ND = rows()
    options = {"n_components": 3, "max_iter": 2, "warm_start": True, "init_params": "random", "random_state": 0}
    ours, theirs = BayesianGaussianMixture(**options), mixture.BayesianGaussianMixture(**options)
    for _ in range(3):
        compare(ours.fit(x_ND), theirs.fit(x_ND), x_ND)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prior", TYPES)
def test_weights_are_repetitions(kind, prior):
    x_ND = rows()
    weight_N = np.random.default_rng(0).integers(1, 4, len(x_ND))
    start = BayesianGaussianMixture(n_components=3, covariance_type=kind, weight_concentration_prior_type=prior,
                                    random_state=0, init_params="random", max_iter=3).fit(x_ND)
    start.set_params(warm_start=True)
    one, two = deepcopy(start).fit(x_ND, sample_weight=weight_N), deepcopy(start).fit(x_ND.repeat(weight_N, 0))
    for name in ATTRIBUTES:
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-6, atol=1e-9, err_msg=name)
    assert np.abs(one.means_ - start.means_).max() > 1e-3


def test_the_best_of_several_starts_is_kept():
    options = {"n_components": 4, "init_params": "random", "random_state": 0}
    one, four = (BayesianGaussianMixture(**options, n_init=n).fit(rows()) for n in (1, 4))
    theirs = mixture.BayesianGaussianMixture(**options, n_init=4).fit(rows())
    assert four.lower_bound_ > one.lower_bound_ and four.lower_bound_ == pytest.approx(theirs.lower_bound_, rel=1e-9)


def test_components_that_are_not_needed_empty():
    x_ND = rows(300)
    model = BayesianGaussianMixture(n_components=8, weight_concentration_prior=1e-3, max_iter=1000, random_state=0)
    assert np.sum(model.fit(x_ND).weights_ > 0.01) == 3


def test_weak_priors_give_the_most_likely_mixture():
    x_ND = rows(3000)
    weak = BayesianGaussianMixture(n_components=3, mean_precision_prior=1e-6, random_state=0, tol=1e-6).fit(x_ND)
    plain = GaussianMixture(3, random_state=0, tol=1e-9).fit(x_ND)
    a, b = weak.means_[:, 0].argsort(), plain.means_[:, 0].argsort()
    np.testing.assert_allclose(weak.means_[a], plain.means_[b], atol=1e-2)


def test_tensors_in_and_out_and_far_rows():
    x_ND = torch.as_tensor(rows())
    model = BayesianGaussianMixture(n_components=3, random_state=0).fit(x_ND)
    assert isinstance(model.means_, torch.Tensor) and isinstance(model.score_samples(x_ND), torch.Tensor)
    drawn_ND, labels_N = model.sample(50)
    assert drawn_ND.shape == (50, 3) and labels_N.max() <= 2


@pytest.mark.parametrize("options, message", [
    ({"degrees_of_freedom_prior": 1.5}, "should be greater than 2, but got 1.500"),
    ({"mean_prior": [0.0]}, "'mean_prior' should have the shape of"),
    ({"covariance_prior": np.eye(2)}, "'covariance_prior' should have the shape of"),
    ({"covariance_prior": -np.eye(3)}, "positive-definite"),
    ({"weight_concentration_prior_type": "dirichlet"}, "weight_concentration_prior_type"),
    ({"covariance_type": "VVV"}, "covariance_type"),
    ({"n_components": 1000}, "n_samples >= n_components"),
])
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        BayesianGaussianMixture(**options).fit(rows())


def test_criteria_are_refused():
    model = BayesianGaussianMixture().fit(rows())
    with warnings.catch_warnings(), pytest.raises(MixwellError, match="lower_bound_"):
        model.bic(rows())
