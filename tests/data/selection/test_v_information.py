"""Hard examples of every cluster; noise keeps to its share; V-information is what it is for a family with constants."""

import numpy as np
import pytest

from mixwell.data.pool import Pool
from mixwell.data.selection.v_information import Config, information, v_information


def islands():
    """Four far clusters of 25; the last is noise, hardest of all."""
    rng = np.random.default_rng(0)
    features = np.repeat(np.eye(4) * 50, 25, axis=0) + rng.standard_normal((100, 4))
    losses = rng.uniform(0, 1, 100) + 10 * (np.arange(100) >= 75)
    return Pool.measured(features, losses), losses


def test_the_hardest_of_every_cluster_are_kept():
    pool, losses = islands()
    chosen = v_information(pool, Config(share=0.2, groups=4), np.random.default_rng(1)).indices_S
    expected = [25 * k + i for k in range(4) for i in np.argsort(losses[25 * k : 25 * k + 25])[-5:]]
    assert sorted(chosen) == sorted(expected)
    assert list(chosen) == sorted(chosen, key=lambda place: -losses[place])


def test_noise_takes_all_without_clusters_and_its_share_with_them():
    pool, _ = islands()
    for groups, noise in ((1, 20), (4, 5)):
        chosen = v_information(pool, Config(share=0.2, groups=groups), np.random.default_rng(1)).indices_S
        assert (chosen >= 75).sum() == noise


def test_information_of_nested_families_is_not_negative_and_grows():
    rng = np.random.default_rng(2)
    x = rng.standard_normal(200)
    y = x + x**2 + 0.3 * rng.standard_normal(200)

    def losses(degree):
        return 0.5 * (y - np.polyval(np.polyfit(x, y, degree), x)) ** 2

    found = [information(losses(0), losses(degree)) for degree in (0, 1, 2)]
    assert found[0] == 0 and 0 < found[1] < found[2]


def test_refusals():
    for values in ({"share": 0}, {"groups": 0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**values)
