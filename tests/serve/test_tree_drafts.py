"""One draw a node keeps the model's law whatever the tree; drawing for every branch anew does not."""

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.serve.speculation import draw
from mixwell.serve.tree_drafts import Config, Grams, branches, example, grown, tree_drafts

LAW = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def test_branches_share_what_they_begin_with():
    tree = grown([(1, 2, 3), (1, 2, 4), (5,), (1, 2)])
    assert tree.tokens == [1, 2, 3, 4, 5] and tree.parents == [-1, 0, 1, 1, -1]
    assert [tree.branch(node) for node in range(5)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [5]]
    seen = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert tree.mask().int().tolist() == seen


def test_first_tokens_have_the_models_law_and_the_released_rule_tilts_to_the_drafts():
    draws = generator(1)
    tree = grown([(0,), (1,)])
    counts = torch.zeros(3, dtype=torch.float64)
    released = torch.zeros(3, dtype=torch.float64)
    for _ in range(6000):
        counts[tree_drafts([0], tree, lambda ids: LAW, draws)[0]] += 1
        drawn = [draw(LAW, draws) for _ in range(2)]
        agreeing = [token for token, draft in zip(drawn, (0, 1)) if token == draft]
        released[agreeing[0] if agreeing else drawn[0]] += 1
    assert (counts / 6000 - LAW).abs().max() < 0.025
    assert (released / 6000 - LAW).abs().max() > 0.05


def test_the_longest_branch_that_agrees_stands_and_a_token_more():
    certain = torch.eye(6, dtype=torch.float64)

    def law(ids):
        return certain[(ids[-1] + 1) % 6]

    tree = grown([(1, 2, 3), (1, 4), (2, 3)])
    assert tree_drafts([0], tree, law, generator(0)) == [1, 2, 3, 4]
    assert tree_drafts([4], tree, law, generator(0)) == [5]
    assert tree_drafts([0], grown([]), law, generator(0)) == [1]
    assert tree_drafts(**example(generator(0)))


def test_the_table_gives_what_followed_most_often():
    grams = Grams(2)
    grams.learn([1, 2, 3, 1, 2, 4, 1, 2, 3, 9])
    assert grams.best(1, 5) == [(2, 3), (2, 4)] and grams.best(1, 1) == [(2, 3)] and grams.best(7, 3) == []
    found = branches([[1, 5, 6], [2, 8]], grams, Config(top=2, grams=1, length=2))
    assert found == [(1, 2), (1, 8), (5, 2), (5, 8), (1, 2, 3)]
    assert branches([[1], [2]], grams, Config(top=1, grams=0)) == [(1, 2)]
    with pytest.raises(ValueError, match="top is 0"):
        Config(top=0)
