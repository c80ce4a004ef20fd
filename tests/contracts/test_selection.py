"""What every rule that selects examples promises (family `data.selection`)."""

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.data.pool import Pool
from tests.contracts._tools import cases, same_config

RULES = cases("data.selection")


def fresh(seed=0):
    return np.random.default_rng(seed)


def choose(entry, pool, config, seed=1):
    return entry.load()(pool, config, fresh(seed))


@pytest.mark.parametrize("entry", RULES)
def test_choices_repeat_and_leave_the_pool_as_it_was(entry):
    values = entry.module().example(fresh())
    before = values["pool"].features_ND.copy()
    first, second = (choose(entry, **values) for _ in range(2))
    assert np.array_equal(first.indices_S, second.indices_S) and np.array_equal(first.weights_S, second.weights_S)
    assert np.array_equal(values["pool"].features_ND, before) and same_config(values["config"])
    assert first.indices_S.min() >= 0 and first.indices_S.max() < len(before)
    assert first.indices_S.shape == first.weights_S.shape and (first.weights_S > 0).all()


@pytest.mark.parametrize("entry", [case for case in RULES if "distinct" in case.values[0].tags])
def test_a_share_of_the_pool_is_kept_no_example_twice_and_all_count_alike(entry):
    values = entry.module().example(fresh())
    chosen = choose(entry, **values)
    wanted = values["config"].share * len(values["pool"])
    assert wanted <= len(chosen.indices_S) <= wanted + 11  # rounded up in every cluster
    assert len(set(chosen.indices_S)) == len(chosen.indices_S)
    assert np.ptp(chosen.weights_S) == 0 and chosen.weights_S.sum() == pytest.approx(1)
    whole = type(values["config"])(**{**vars(values["config"]), "share": 1.0})
    assert sorted(choose(entry, values["pool"], whole).indices_S) == list(range(len(values["pool"])))


@pytest.mark.parametrize("entry", RULES)
def test_a_pool_that_does_not_say_what_is_asked_ends_in_one_line(entry):
    values = entry.module().example(fresh())
    with pytest.raises(MixwellError, match=r"the pool has no (losses|influence); give what measures"):
        choose(entry, Pool(values["pool"].features_ND), values["config"])


def test_bad_pools_end_in_one_line():
    with pytest.raises(MixwellError, match="not finite"):
        Pool(np.array([[np.nan]]))
    with pytest.raises(MixwellError, match=r"shape \(3,\); expected a row"):
        Pool(np.ones(3))
    with pytest.raises(MixwellError, match="2 losses came for 3 examples"):
        Pool.measured(np.ones((3, 1)), np.ones(2))
    pool = Pool.measured(np.ones((3, 1)), np.array([1.0, -1.0, 1.0]))
    with pytest.raises(MixwellError, match="example 1 has the loss -1"):
        pool.losses_at(np.arange(3))
    assert pool.losses_asked == 3
    broken = Pool(np.ones((2, 1)), influence=lambda of, on: np.full((len(of), len(on)), np.inf))
    with pytest.raises(MixwellError, match="an influence is not finite"):
        broken.influences(np.arange(2), np.arange(2))
