"""A tree of drafts read in one pass: one token is drawn at each node, and the branch that agrees with it stands.

**Equation:** heads guess the next gamma tokens from one place; an n-gram table adds for each guess of the first token
    the continuations that followed it most often before. Branches that begin alike share nodes. The model's pass
    gives the law at every node, one token z is drawn there, and from the root one goes to the child whose token is z
    as long as there is one; the z of the last node is told as well.
**Shapes:** heads' guesses gamma lists of token ids; a tree of N nodes with parents [N], attention mask [N, N].
**Reference:** Wu et al. 2025, TokenSwift (2502.18890), sections 3.2 to 3.4, and the authors' code.
**Differs:** one draw a node: the released code draws anew for every branch, also where branches are the same, and takes
    the longest agreement, which favours what was guessed. Guesses and laws come from whoever calls: the heads, the
    partial cache (that of `mixwell.serve.hierarchy`) and the penalty of what was said lately (`repetition_penalty` of a
    request) are not part of the file. The heads' branches are all products of their `top` guesses.
**Fails when:** text does not repeat itself, so that no n-grams are there, and the heads are seldom right.
**Cost:** a pass over N nodes for one token or more.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.serve.speculation import Law, draw

NONE = -1  # the parent of the root's children


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of tree drafts."""

    top: int = 2  # guesses of each head that are combined
    grams: int = 20  # continuations of a first guess that the table adds
    length: int = 3  # tokens of a continuation in the table

    def __post_init__(self) -> None:
        check_least(self, top=1, grams=0, length=1)


@dataclass
class Grams:
    """What followed each token, counted: continuations of `length` tokens."""

    length: int
    counts: dict[int, Counter[tuple[int, ...]]] = field(default_factory=lambda: defaultdict(Counter))

    def learn(self, ids: Sequence[int]) -> None:
        """Count the continuations of each token of a text."""
        for place in range(len(ids) - self.length):
            following = tuple(ids[place + 1 : place + 1 + self.length])
            self.counts[ids[place]][following] += 1

    def best(self, token: int, count: int) -> list[tuple[int, ...]]:
        """The most frequent continuations, those counted first ahead where they tie."""
        counted = self.counts.get(token, Counter())
        return [each for each, _ in counted.most_common(count)]


class Tree(NamedTuple):
    """Nodes in an order in which parents come first: their tokens and their parents' numbers."""

    tokens: list[int]
    parents: list[int]

    def mask(self) -> Tensor:
        """[N, N]: which nodes a node looks back on: its forebears and itself."""
        size = len(self.tokens)
        seen_NN = torch.eye(size, dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent != NONE:
                seen_NN[node] |= seen_NN[parent]
        return seen_NN

    def branch(self, node: int) -> list[int]:
        """Tokens from the root to a node."""
        found: list[int] = []
        while node != NONE:
            found.insert(0, self.tokens[node])
            node = self.parents[node]
        return found


def grown(branches: Sequence[Sequence[int]]) -> Tree:
    """The tree of branches; what they have in common at their beginning stands there once."""
    nodes: dict[tuple[int, ...], int] = {}
    tokens: list[int] = []
    parents: list[int] = []
    for branch in branches:
        for length in range(1, len(branch) + 1):
            path = tuple(branch[:length])
            if path in nodes:
                continue
            nodes[path] = len(tokens)
            tokens.append(path[-1])
            parents.append(nodes.get(path[:-1], NONE))
    return Tree(tokens, parents)


def branches(guesses: Sequence[Sequence[int]], grams: Grams, config: Config) -> list[tuple[int, ...]]:
    """Products of the heads' first guesses, and each first guess with its continuations of the table."""
    kept = [each[: config.top] for each in guesses]
    found = list(itertools.product(*kept))
    for first in kept[0]:
        found += [(first, *rest) for rest in grams.best(first, config.grams)]
    return found


@method(title="Tree drafts", paper="From Hours to Minutes: Lossless Acceleration of Ultra Long Sequence Generation up "
        "to 100K Tokens", year=2025)
def tree_drafts(ids: Sequence[int], tree: Tree, law: Law, generator: torch.Generator) -> list[int]:
    """The tokens of one pass, one at least, distributed as the model's own: drawn once a node along the branch."""
    children = {(parent, token): node for node, (token, parent) in enumerate(zip(*tree))}
    told: list[int] = []
    node: int | None = NONE
    while node is not None:
        token = draw(law([*ids, *told]), generator)
        told.append(token)
        node = children.get((node, token))
    return told


def example(generator: torch.Generator) -> dict[str, Any]:
    """A law that hangs on the last token, and a tree of three branches."""
    drawn = torch.rand(8, 8, generator=generator, dtype=torch.float64)
    table = drawn.softmax(-1)
    tree = grown([(1, 2, 3), (1, 4), (5,)])

    def law(ids: Sequence[int]) -> Tensor:
        return table[ids[-1]]

    return {"ids": [3], "tree": tree, "law": law, "generator": generator}
