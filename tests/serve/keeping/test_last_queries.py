"""The choice is that of the last queries, pooled over neighbours, and the answer stays whole."""

import pytest

from mixwell.core.rng import generator
from mixwell.serve.keeping.last_queries import Config, LastQueries, example
from tests.contracts._keeping import prompt
from tests.serve.keeping.conftest import places_of


@pytest.mark.parametrize("pool", [1, 3, 5])
def test_the_last_queries_decide(pool):
    weights, whole = prompt(14)
    rule = LastQueries(Config(budget=7, queries=3, pool=pool))
    kept = rule.prompt(weights, whole)
    found = places_of(kept, whole)
    for g in range(2):
        looked = [sum(float(weights[0, g, i, j]) for i in (11, 12, 13)) for j in range(14)]
        half = pool // 2
        pooled = [max(looked[max(0, j - half) : min(j + half + 1, 11)]) for j in range(11)]
        limit = sorted(pooled, reverse=True)[3]
        assert found[g][4:] == [11, 12, 13]
        assert all(pooled[place] >= limit for place in found[g][:4])
        assert len(set(found[g])) == 7
    # their own positions, at which they look most, lift none of those before them
    own = weights.clone()
    own[..., 11:] = 100
    assert places_of(rule.prompt(own, whole), whole) == found
    assert rule.token(weights[:, :, 0], kept) is kept
    assert example(generator(0))["config"].pool == 3


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="odd number"):
        Config(pool=4)
    with pytest.raises(ValueError, match="at least queries"):
        Config(budget=3, queries=4)
