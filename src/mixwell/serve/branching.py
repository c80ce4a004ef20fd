"""Guesses in branches: what followed the last token before, several ways at once, by the row's own text.

The tree is that of `mixwell.serve.tree_drafts`, without trained heads: its first branch is what followed the longest
repetition, the others are the most frequent continuations of the last token.
"""

from __future__ import annotations

from collections.abc import Sequence

from mixwell.serve.lookup import Config, Lookup
from mixwell.serve.tree_drafts import NONE, Grams, Tree, grown

BRANCHES = 4  # continuations of the last token
LENGTH = 3  # tokens of each


class Branching:
    """Guesses what a row says next, in branches."""

    def __init__(self, branches: int = BRANCHES, length: int = LENGTH) -> None:
        self.branches = branches
        self.grams = Grams(length)
        self.lookup = Lookup(Config())
        self.counted = 0  # tokens whose continuations are in the table

    def draft(self, ids: Sequence[int], said: int, longest: int) -> Tree:
        """Guesses for what follows `ids`, of which `said` are the answer so far."""
        length = self.grams.length
        self.grams.learn(ids[self.counted :])
        self.counted = max(self.counted, len(ids) - length)
        left = longest - said - 1
        if left <= 0:
            return nothing()
        again = self.lookup.draft(ids, said, longest)
        others = self.grams.best(ids[-1], self.branches)
        branches = [branch[:left] for branch in (again, *others) if branch]
        return grown(branches)

    def learn(self, predicted: Sequence[int], accepted: int) -> None:
        """Take in a pass; the row itself is all that is looked at."""


def nothing() -> Tree:
    """No guesses."""
    return Tree([], [])


def chain(guesses: Sequence[int]) -> Tree:
    """Guesses one behind the other."""
    count = len(guesses)
    return Tree(list(guesses), list(range(NONE, count - 1)))


def depths(tree: Tree) -> list[int]:
    """Of each node how many tokens lead to it, itself counted."""
    found: list[int] = []
    for parent in tree.parents:
        before = 0 if parent == NONE else found[parent]
        found.append(before + 1)
    return found


def paths(tree: Tree) -> list[list[int]]:
    """The nodes of each branch from the root on, a branch for each end, in the order of the ends."""
    inner = set(tree.parents)
    return [path_to(tree, node) for node in range(len(tree.tokens)) if node not in inner]


def path_to(tree: Tree, node: int) -> list[int]:
    """The nodes from the root to a node."""
    found: list[int] = []
    while node != NONE:
        found.append(node)
        node = tree.parents[node]
    return found[::-1]


def first_nodes(tree: Tree, count: int) -> Tree:
    """The tree's first nodes, which are a tree: parents come first."""
    tokens, parents = (each[:count] for each in tree)
    return Tree(tokens, parents)


def no_deeper(tree: Tree, most: int) -> Tree:
    """The tree without the nodes that so many tokens do not lead to."""
    tokens: list[int] = []
    parents: list[int] = []
    places = {NONE: NONE}
    numbered = enumerate(depths(tree))
    for node, depth in numbered:
        if depth > most:
            continue
        parent = tree.parents[node]
        places[node] = len(tokens)
        tokens.append(tree.tokens[node])
        parents.append(places[parent])
    return Tree(tokens, parents)
