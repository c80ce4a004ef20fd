"""The gated regressions keep scikit-learn's conventions."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from mixwell.density.regression.distributed import DistributedMixtureOfExperts
from mixwell.density.regression.lasso import LassoMixtureOfExperts
from mixwell.density.regression.localized import LocalizedMixtureOfExperts
from mixwell.density.regression.multinomial import MultinomialMixtureOfExperts
from mixwell.density.regression.polynomial import PolynomialExperts

QUICK = {"max_iter": 5, "random_state": 0}


@parametrize_with_checks([PolynomialExperts(**QUICK), LocalizedMixtureOfExperts(**QUICK),
                          LassoMixtureOfExperts(**QUICK, penalty=1e-3), MultinomialMixtureOfExperts(**QUICK),
                          DistributedMixtureOfExperts(**QUICK, n_shards=2, reduce_init=1)])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_estimator_checks(estimator, check):
    check(estimator)
