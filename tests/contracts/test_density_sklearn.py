"""scikit-learn's own checks, asked of every estimator of density that promises its conventions; tags in `_density`."""

import functools
import inspect
import math
import warnings

import pytest
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.utils.estimator_checks import check_estimator

from mixwell.density import CategoricalMixture, GaussianMixture, PretrainedPredictor
from tests.contracts._density import cases, given

QUICK = {"max_iter": 1, "max_moves": 1, "candidates": 1, "rounds": 1, "em_steps": 1, "steps": 1, "hidden_dim": 2,
         "solver_steps": 5, "multiplier_steps": 2, "n_shards": 2, "reduce_init": 1, "reduce_iter": 2,
         "min_rows": 45, "max_parts": 2, "samples": 50, "inner_iter": 1, "n_init": 1, "n_factors": 1, "random_state": 0}
FAILURES = {
    "mixtures.gaussian, diagonal": {"check_sample_weight_equivalence_on_dense_data":
                                    "the draws of k-means++ differ for repeated rows"},
    "clustering.topics": {"check_clustering": "draws negative data, whatever the tags say of counts"},
    "clustering.likelihood_sdp": {"check_clustering": "wants the optimum, which takes more than a few steps"},
    "selection.information": {"check_sample_weight_equivalence_on_dense_data": "27 rows of 30 columns tell no errors"},
    "networks.pretraining": {"check_classifiers_classes": "-1 marks rows without a label"},
}

SPARSE = {f"check_estimator_sparse_{kind}": "asks whatever has predict_proba for the tags of a classifier"
          for kind in ("array", "matrix")}
FAILURES |= {f"mixtures.{name}": SPARSE for name in (
    "exponential", "negative_binomial", "poisson", "zero_inflated_negative_binomial", "zero_inflated_poisson")}


SMALL = GaussianMixture(1, max_iter=1, init_params="random_from_data")  # inside of others that fit many
OWN = {
    "mixtures.general": {"components": [SMALL]},
    "mixtures.categorical": {"unknown": "missing"},
    "mixtures.latent_classes": {"n_components": 1, "measurement": CategoricalMixture(unknown="missing")},
    "mixtures.gamma": {"zeros": "missing"},
    "mixtures.inverse_gaussian": {"zeros": "missing"},
    "mixtures.lognormal": {"zeros": "missing"},
    "mixtures.weibull": {"zeros": "missing"},
    "mixtures.beta": {"bounds": None},
    "selection.bootstrap": {"estimator": SMALL, "n_resamples": 2},
    "selection.information": {"estimator": GaussianMixture(1, covariance_type="spherical", max_iter=1)},
    "selection.components": {"estimator": SMALL, "n_components": (1, 2)},
    "robust.private": {"estimator": SMALL, "n_components": 1, "epsilon": math.inf, "n_blocks": 5},
    "networks.pretraining": {"latent": GaussianMixture(8, max_iter=1, random_state=0)},
    "clustering.manifold": {"start_steps": 1},
    "clustering.hamiltonian_cycle": {"start_steps": 1, "n_clusters": 3},
    "regression.joint": {"mixture": GaussianMixture(1)},
    "regression.lasso": {"penalty": 1e-3},
    "regression.mixture": {"n_components": 1},
}
MORE = [pytest.param(GaussianMixture(2, covariance_type="diag", random_state=0), id="mixtures.gaussian, diagonal"),
        pytest.param(PretrainedPredictor(task="regression", latent=PCA()), id="networks.pretraining, regression")]


@pytest.fixture(autouse=True)
def _signatures_once(monkeypatch):
    """scikit-learn reads a class's signature again whenever it asks for parameters, thousands of times a class."""
    names = functools.cache(BaseEstimator._get_param_names.__func__)
    monkeypatch.setattr(BaseEstimator, "_get_param_names", classmethod(names))


def quick(entry):
    """The method's class with its defaults, but for options that would take long."""
    kind = type(given(entry)["estimator"])
    known = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in QUICK.items() if name in known}
                | OWN.get(entry.name.removeprefix("density."), {}))


@pytest.mark.parametrize("estimator", [pytest.param(quick(p.values[0]), id=p.id) for p in cases("estimator", "sklearn")]
                         + MORE)
def test_scikit_learn_asks(estimator, request):
    name = request.node.callspec.id
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(estimator, on_fail=None, on_skip=None, expected_failed_checks=FAILURES.get(name, {}))
    failed = [(check["check_name"], check["exception"]) for check in found if check["status"] == "failed"]
    assert not failed and sum(check["status"] == "passed" for check in found) > 20
