"""Sensitivity sampling: shares against a loop, an unbiased estimate, its error bound, exactness where it must be."""

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.data.pool import Pool, clusters
from mixwell.data.selection import sensitivity


def fresh(seed=0):
    return np.random.default_rng(seed)


def smooth_pool(count=400):
    features = fresh(1).standard_normal((count, 3))
    losses = 0.2 + (features**2).sum(1)
    return Pool.measured(features, losses), losses


def test_shares_agree_with_a_loop_and_centres_alone_are_measured():
    pool, losses = smooth_pool(120)
    config = sensitivity.Config(centres=7, smoothness=0.4)
    found = sensitivity.sensitivities(pool, config, fresh(3))
    assert pool.losses_asked == 7
    cluster_N, centres = clusters(pool.features_ND, 7, fresh(3))
    distance = [sum((a - b) ** 2 for a, b in zip(e, centres[k])) for e, k in zip(pool.features_ND, cluster_N)]
    wanted = []
    for own, v in zip(cluster_N, distance):
        nearest = min((i for i in range(120) if cluster_N[i] == own), key=lambda i: distance[i])
        wanted.append(losses[nearest] + 0.4 * v)
    expected = [0.99 * w / sum(wanted) + 0.01 / 120 for w in wanted]
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_estimate_is_unbiased_and_nearer_than_even_sampling():
    pool, losses = smooth_pool()
    config = sensitivity.Config(draws=40, centres=20, smoothness=0.5)
    shares = sensitivity.sensitivities(pool, config, fresh(2))
    mean = losses.mean()
    assert (shares * losses / (400 * shares)).sum() == pytest.approx(mean)  # expectation over one draw
    found = [sensitivity.sensitivity(pool, config, fresh(seed)) for seed in range(60)]
    errors = np.array([chosen.mean(losses[chosen.indices_S]) - mean for chosen in found])
    even = np.array([losses[fresh(seed).integers(400, size=40)].mean() - mean for seed in range(60)])
    assert abs(errors.mean()) < 4 * errors.std() / 60**0.5
    assert errors.std() < 0.7 * even.std()


def test_the_papers_bound_holds_for_a_smooth_loss():
    """Error of the sum over eps (sum l + 2 lambda Phi): Chebyshev for eps^2 S = 1 gives mean squares below 1."""
    features = fresh(1).standard_normal((400, 3))
    losses = 1 + np.sin(features[:, 0])  # |l(a) - l(b)| <= |a - b| <= 1/4 + |a - b|^2
    pool = Pool.measured(features, losses)
    config = sensitivity.Config(draws=25, centres=15, smoothness=1.0)
    ratio = []
    for seed in range(80):
        chosen = sensitivity.sensitivity(pool, config, fresh(seed))
        cluster_N, centres = clusters(features, 15, fresh(seed))
        phi = ((features - centres[cluster_N]) ** 2).sum()
        bound = 0.2 * (losses.sum() + 2 * phi)
        ratio.append(abs(400 * chosen.mean(losses[chosen.indices_S]) - losses.sum()) / bound)
    assert np.mean(np.square(ratio)) < 1


def test_equal_losses_at_centres_of_their_own_are_exact_and_zero_losses_even():
    features = np.repeat(fresh(0).standard_normal((5, 2)) * 10, 8, axis=0)
    config = sensitivity.Config(draws=3, centres=5)
    same = Pool.measured(features, np.full(40, 2.0))
    chosen = sensitivity.sensitivity(same, config, fresh())
    assert chosen.mean(np.full(3, 2.0)) == pytest.approx(2.0)
    none = Pool.measured(np.zeros((40, 2)), np.zeros(40))
    assert sensitivity.sensitivities(none, sensitivity.Config(centres=1), fresh()) == pytest.approx(np.full(40, 1 / 40))


def test_refusals():
    pool, _ = smooth_pool(10)
    with pytest.raises(MixwellError, match="20 clusters were asked for among 10"):
        sensitivity.sensitivity(pool, sensitivity.Config(), fresh())
    for values in ({"draws": 0}, {"centres": 0}, {"smoothness": 0}):
        with pytest.raises(ValueError, match="expected"):
            sensitivity.Config(**values)
