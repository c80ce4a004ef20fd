"""What scikit-learn asks of an estimator, asked of each clustering."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from mixwell.density.clustering.likelihood_sdp import LikelihoodSDP
from mixwell.density.clustering.semi_supervised import SemiSupervisedMixture
from mixwell.density.clustering.topics import ClusterTopics


def expected_failures(estimator):
    """The clustering check draws negative data whatever an estimator's tags say."""
    return {"check_clustering": "word counts are not negative"} if isinstance(estimator, ClusterTopics) else {}


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([LikelihoodSDP(max_iter=2), SemiSupervisedMixture(n_components=3, rounds=3),
                          ClusterTopics(n_clusters=2, max_iter=5)], expected_failed_checks=expected_failures)
def test_scikit_learn_asks(estimator, check):
    check(estimator)
