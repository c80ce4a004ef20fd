"""The language's counts and ways, walks against the bound written down, the surrogate against a solve, refusals."""

import collections
import math

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.scaling import spaces
from mixwell.scaling.search.tree import Config, Node, scores, told, tree, walked
from mixwell.scaling.trials import Trials

DENSE = {"method": "dense", "width": [16, 32, 64]}
MOE = {"method": "moe", "experts": [4, 8], "rule": ["hash", "top"]}
PLAIN = [{"or": [DENSE, MOE]}, {"optional": {"method": "norm"}}, {"repeat": DENSE, "times": [0, 1, 2]},
         {"tied": MOE, "times": 2}]


def fresh(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("halves", [False, True])
def test_ways_are_as_many_as_the_formula_says_and_all_differ(halves):
    inside = spaces.space(PLAIN)
    assert spaces.count(inside) == (3 + 4) * 2 * (1 + 3 + 9) * 4
    taken, every = spaces.listed(inside, halves)
    assert len(taken) == len(every) == 728 and len({tuple(row) for row in taken.tolist()}) == 728
    assert len({str(blocks) for blocks in every}) == 728
    if halves:
        assert taken.max() == 1
    for blocks in every:
        assert blocks[-1] == blocks[-2] and blocks[-1]["method"] == "moe"  # tied
        assert set(blocks[-1]) == {"method", "experts", "rule"}


def test_halves_lead_to_the_same_blocks_and_neighbours_share_a_beginning():
    inside = spaces.space({"method": "a", "n": [1, 2, 3, 4, 5]})
    taken, every = spaces.listed(inside, True)
    assert [blocks[0]["n"] for blocks in every] == [1, 2, 3, 4, 5]
    assert taken.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, -1], [1, 0, -1], [1, 1, -1]]
    plain, _ = spaces.listed(spaces.space({"method": "a", "n": ["x", "y", "z"]}), True)
    assert plain[:, 0].tolist() == [0, 1, 2]  # unordered values have no halves


def test_grams_count_methods_in_a_row():
    every = [[{"method": name} for name in names] for names in ("ab", "aab", "b", "ab")]
    found = spaces.grams(every, longest=2, least=2)
    assert found.tolist() == [[1, 1, 1, 2], [2, 1, 1, 3], [0, 0, 1, 1], [1, 1, 1, 2]]  # a, ab, b, length


def test_a_walk_goes_to_untried_children_then_to_the_largest_bound():
    taken = np.array([[0, 0], [0, 1], [1, -1]])
    root, losses, visited = Node(), {}, []
    for _ in range(40):
        passed, trial = walked(root, taken, losses, 0.5, fresh(len(visited)))
        if len(root.children) == 2 and len(visited) > 2:
            score, bounds = scores(losses), {}
            for value, child in root.children.items():
                own = child.trials
                mean = sum(score[t] for t in own) / len(own)
                bounds[value] = mean + 0.5 * math.sqrt(2 * math.log(len(root.trials)) / len(own))
            best = max(bounds, key=bounds.get)
            assert passed[1] is root.children[best]
        losses[trial] = [1.0, 3.0, 2.0][trial]
        visited.append(trial)
        for node in passed:
            node.trials.append(trial)
    assert {visited[0], visited[1]} in ({0, 2}, {1, 2})  # both decisions of the root first
    assert len(root.trials) == 40 == sum(len(child.trials) for child in root.children.values())
    assert visited.count(0) > visited.count(1) + visited.count(2)
    assert collections.Counter(visited)[0] > 20


def test_scores_lie_between_the_losses_seen():
    assert scores({3: 2.0, 5: 4.0, 7: math.inf, 9: 3.0}) == {3: 1.0, 5: 0.0, 7: 0.0, 9: 0.5}
    assert scores({1: math.inf}) == {1: 0.0}


def test_the_surrogate_is_ridge_regression_and_finds_a_linear_optimum():
    features = fresh(1).standard_normal((80, 4)) * [1, 2, 3, 0]
    losses = 5 + features @ [1.0, -1.0, 0.5, 0.0]
    seen = list(range(30))
    scaled = features[:, :3] - features[:, :3].mean(0)
    scaled = scaled / scaled.std(0)
    x, y = scaled[seen], losses[seen]
    weights = np.linalg.lstsq(np.vstack([x, np.sqrt(2.0) * np.eye(3)]), np.append(y - y.mean(), np.zeros(3)), None)[0]
    assert told(features, seen, y.tolist(), 2.0) == pytest.approx(scaled @ weights + y.mean())
    config = Config(kind="surrogate", evaluations=20, candidates=60, anyone=0.1, ridge=0.1)
    found = [tree(Trials.tabulated(losses[:, None], features), config, fresh(seed)) for seed in range(5)]
    assert all(one.loss == losses.min() for one in found)
    chance = [tree(Trials.tabulated(losses[:, None]), Config(kind="random", evaluations=20), fresh(seed))
              for seed in range(5)]
    assert sum(one.loss == losses.min() for one in chance) < 5
    assert chance[0].spent == 20  # none twice


def test_a_space_in_plain_data_is_searched_and_gives_blocks():
    asked = []

    def evaluate(blocks, epochs):
        asked.append((blocks, epochs))
        return abs(blocks[0]["experts"] - 8) + len(blocks)

    trials = spaces.trials([{"method": "moe", "experts": [2, 4, 8, 16]}, {"optional": {"method": "norm"}}], evaluate, 3)
    found = tree(trials, Config(evaluations=30, explore=1.0), fresh(2))
    assert found.loss == 1 and len(trials) == 8 and found.spent <= 24
    assert all(epochs == 3 for _, epochs in asked)


def test_refusals():
    for plain, message in ((3, "3 is no space"), ({"times": 2}, "is no space"), ({"repeat": DENSE}, "with `times`"),
                           ({"repeat": DENSE, "times": -1}, "times is -1; expected whole numbers"),
                           ({"or": []}, "`or` is .*; expected a list"), ({"or": DENSE}, "`or` is .*; expected a list"),
                           ({"method": "a", "n": []}, "option 'n' has no values")):
        with pytest.raises(MixwellError, match=message):
            spaces.space(plain)
    with pytest.raises(MixwellError, match="the space has 59049 ways; expected 20000 at most"):
        spaces.listed(spaces.space([DENSE] * 10))
    for values in ({"evaluations": 0}, {"candidates": 0}, {"kind": "bayes"}, {"explore": -1}, {"anyone": 2},
                   {"ridge": 0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**values)
