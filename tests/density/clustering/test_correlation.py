"""Every certificate against all partitions, contraction against the objective, cuts against enumeration."""

import itertools

import numpy as np
import pytest

from mixwell.density.clustering import correlation
from mixwell.density.clustering.correlation import CONDITIONS, Config, correlation_clustering, cost, least_cut


def partitions(n):
    """All partitions of n elements as labels, by restricted growth."""
    found = [[0]]
    for _ in range(n - 1):
        found = [[*labels, k] for labels in found for k in range(max(labels) + 2)]
    return np.array(found)


ALL = partitions(6)
TRIPLES = list(itertools.combinations(range(6), 3))


def planted(seed, sigma, scale=1.0, whole=False):
    """Costs of six elements in groups, with noise; whole numbers make ties."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, 6)
    pair, triple = np.zeros((6, 6)), np.zeros((6, 6, 6))
    for i, j in itertools.combinations(range(6), 2):
        value = (-1 if label[i] == label[j] else 1) + sigma * rng.normal()
        pair[i, j] = pair[j, i] = np.round(value) if whole else value
    for three in TRIPLES:
        value = scale * ((-1 if len(set(label[list(three)])) == 1 else 1) + sigma * rng.normal())
        for order in itertools.permutations(three):
            triple[order] = np.round(value) if whole else value
    return pair, triple


def objective(pair, triple, labels):
    """The cost of one partition by a loop."""
    together = [(i, j) for i, j in itertools.combinations(range(len(labels)), 2) if labels[i] == labels[j]]
    threes = [t for t in itertools.combinations(range(len(labels)), 3) if len({labels[i] for i in t}) == 1]
    return sum(pair[p] for p in together) + sum(triple[t] for t in threes)


def agrees(found, labels):
    """Whether a partition keeps all that is certified."""
    same = labels[:, None] == labels
    kept = all(same[i, j] for i, j in itertools.combinations(range(6), 2) if found.groups_N[i] == found.groups_N[j])
    split = all(len(set(labels[list(three)])) > 1 for three in found.split_M3)
    return kept and split and not (same & found.apart_NN).any()


CASES = [(seed, sigma, scale, whole) for seed in range(7) for sigma, scale, whole in
         [(0.3, 1.0, False), (1.0, 0.5, False), (1.5, 1.0, True), (1.0, 0.0, False)]]


@pytest.fixture(scope="module")
def optima():
    """Costs of every case and all of its optima."""
    made = []
    for case in CASES:
        pair, triple = planted(*case)
        values = np.array([objective(pair, triple, labels) for labels in ALL])
        made.append((pair, triple, values.min(), ALL[values < values.min() + 1e-9]))
    return made


@pytest.mark.parametrize("conditions", [CONDITIONS, *((name,) for name in CONDITIONS)], ids="+".join)
def test_one_optimum_keeps_all_that_is_certified(optima, conditions):
    settled, split = 0.0, 0
    for pair, triple, least, best in optima:
        found = correlation_clustering(pair, triple, Config(conditions=conditions))
        assert any(agrees(found, labels) for labels in best), (pair, triple)
        assert found.cost == pytest.approx(objective(pair, triple, found.labels_N)) and found.cost >= least - 1e-9
        settled += found.settled
        split += len(found.split_M3)
    assert split > 0 if conditions == ("triple_cut",) else settled > 0.2


def test_little_noise_is_settled_and_the_partition_found():
    pair, triple = planted(3, 0.1)
    found = correlation_clustering(pair, triple)
    values = [objective(pair, triple, labels) for labels in ALL]
    assert found.settled == 1 and found.cost == pytest.approx(min(values))
    np.testing.assert_array_equal(found.labels_N, found.groups_N)
    assert correlation_clustering(pair, triple, Config(conditions=("edge_cut",))).settled < 1


def test_costs_of_both_signs_settle_nothing_and_greedy_goes_on():
    pair = np.array([[0, -1, -1.0], [-1, 0, 1.5], [-1, 1.5, 0]])
    triple = np.zeros((3, 3, 3))
    for order in itertools.permutations(range(3)):
        triple[order] = -1.0
    found = correlation_clustering(pair, triple)
    assert found.cost == pytest.approx(-1.5) and set(found.labels_N) == {0}
    assert correlation_clustering(np.zeros((1, 1))).settled == 0


def test_joining_groups_keeps_the_objective():
    pair, triple = planted(7, 1.0)
    costs = correlation._costs(pair, triple)
    left, groups = correlation._contracted(costs, [[n] for n in range(6)], (1, 3, 4))
    assert sorted(map(sorted, groups)) == [[0], [1, 3, 4], [2], [5]] and left.pair_GG.shape == (4, 4)
    inside = objective(pair, triple, np.array([0, 1, 2, 1, 1, 3]))
    for labels in partitions(4):
        whole = np.empty(6, dtype=int)
        for label, members in zip(labels, groups):
            whole[members] = label
        assert cost(left, labels) + inside == pytest.approx(objective(pair, triple, whole))


@pytest.mark.parametrize("sinks", [[1], [2, 4]])
def test_cuts_are_the_least_of_all_and_count_a_split_triple_once(sinks):
    pair, triple = planted(1, 1.0)
    costs = correlation._costs(pair, triple)
    wanted = np.inf
    for bits in itertools.product([False, True], repeat=6):
        side = np.array(bits)
        if side[0] and not side[sinks].any():
            crossing = sum(max(-pair[p], 0) for p in itertools.combinations(range(6), 2) if side[p[0]] != side[p[1]])
            crossing += sum(max(-triple[t], 0) for t in TRIPLES if 0 < side[list(t)].sum() < 3)
            wanted = min(wanted, crossing)
    up, down = (least_cut(costs.part(-1), 0, sinks, rounded) for rounded in (np.ceil, np.floor))
    assert down <= wanted <= up and up - down < 1e-6 and up == pytest.approx(wanted, abs=1e-6)


def test_refuses():
    with pytest.raises(ValueError, match="conditions holds 'luck'"):
        Config(conditions=("luck",))
    with pytest.raises(ValueError, match="not finite and symmetric"):
        correlation_clustering(np.array([[0, 1.0], [2.0, 0]]))
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="not finite and symmetric"):
            correlation_clustering(np.array([[0, value], [value, 0]]))
    with pytest.raises(ValueError, match=r"shapes \(2, 2\) and \(3, 3, 3\)"):
        correlation_clustering(np.zeros((2, 2)), np.zeros((3, 3, 3)))
