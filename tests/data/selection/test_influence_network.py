"""Influence networks: what is measured and what is told, greedy choice against brute force, the exact limit."""

import itertools

import numpy as np
import pytest

from mixwell.data.pool import Pool
from mixwell.data.predictor import rank_correlation
from mixwell.data.selection import influence_network as network


def fresh(seed=0):
    return np.random.default_rng(seed)


def influential(count=80):
    """Influence as a gradient product: (e_i . e_j) times what both features say."""
    features = fresh(1).standard_normal((count, 3))
    exact = (features @ features.T) * 0.5 + np.outer(features[:, 0], np.ones(count))
    return Pool(features, influence=lambda of, on: exact[np.ix_(of, on)]), exact


def test_pairs_that_were_not_measured_are_ranked():
    pool, exact = influential()
    config = network.Config(exact=0.4, epochs=60, hidden=64, lr=3e-3)
    found = network.estimated(pool, config, fresh(2))
    assert pool.pairs_asked == 32**2
    places = fresh(2).choice(80, 32, replace=False)
    assert np.array_equal(found[np.ix_(places, places)], exact[np.ix_(places, places)])
    unseen = np.setdiff1d(np.arange(80), places)
    both_new = np.ix_(unseen, unseen)
    assert rank_correlation(found[both_new].ravel(), exact[both_new].ravel()) > 0.8
    assert rank_correlation(found[both_new].ravel(), exact.T[both_new].ravel()) < \
        rank_correlation(found[both_new].ravel(), exact[both_new].ravel())  # of i on j, not the reverse


def test_all_pairs_measured_is_the_exact_choice():
    pool, exact = influential(30)
    config = network.Config(share=0.2, exact=1.0)
    assert np.array_equal(network.estimated(pool, config, fresh()), exact)
    scaled = (exact - exact.min()) / np.ptp(exact)
    expected, reached = [], np.zeros(30)
    for _ in range(6):
        gains = [sum(max(scaled[i, j] - reached[j], 0) for j in range(30)) if i not in expected else -1
                 for i in range(30)]
        expected.append(int(np.argmax(gains)))
        reached = np.maximum(reached, scaled[expected[-1]])
    assert list(network.influence_network(pool, config, fresh()).indices_S) == expected


def test_greedy_cover_is_near_the_best_of_all_subsets():
    benefit = fresh(3).random((9, 9))
    chosen = network.covering(benefit, 3)
    best = max(benefit[list(some)].max(0).sum() for some in itertools.combinations(range(9), 3))
    assert (1 - np.exp(-1)) * best <= benefit[chosen].max(0).sum() <= best


def test_refusals():
    for values in ({"share": 2}, {"exact": 0}, {"hidden": 0}, {"epochs": 0}, {"lr": 0}):
        with pytest.raises(ValueError, match="expected"):
            network.Config(**values)
