"""Proxies of sensitivity as small trees, and their evolution: what of a matrix tells how it bears fewer bits.

A tree takes two of what is known of a matrix's numbers, sends each through two unary operations, joins them by a binary
one and pools the result to one score. Its genes are words, one of each of `GENES`.

Legend: U matrices, n numbers of a matrix that are looked at, M mixes of a bank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from torch import Tensor

TINY = 1e-12
Genes = tuple[str, ...]

INPUTS = ("weight", "gradient", "product", "curvature", "activation")


def _unit(x: Tensor) -> Tensor:
    return x / (x.norm() + TINY)


def _standard(x: Tensor) -> Tensor:
    centred = x - x.mean()
    spread = x.std(correction=0) + TINY
    return centred / spread


def _log(x: Tensor) -> Tensor:
    return (x.abs() + TINY).log()


def _root(x: Tensor) -> Tensor:
    return x.abs().sqrt()


def _mean(x: Tensor, count: int) -> Tensor:
    return x.mean()


def _sum(x: Tensor, count: int) -> Tensor:
    return x.mean() * count


def _norm(x: Tensor, count: int) -> Tensor:
    power = x.square().mean() * count
    return power.sqrt()


def _ratio(x: Tensor, y: Tensor) -> Tensor:
    return x / (y.abs() + TINY)


UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "same": torch.clone, "abs": torch.abs, "square": torch.square, "root": _root, "log": _log, "negative": torch.neg,
    "unit": _unit, "standard": _standard, "sigmoid": torch.sigmoid}
BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plus": torch.add, "minus": torch.sub, "times": torch.mul, "over": _ratio}
# over all numbers of a matrix, of which x are some
POOLED: Mapping[str, Callable[[Tensor, int], Tensor]] = {"mean": _mean, "sum": _sum, "norm": _norm}
GENES = (INPUTS, tuple(UNARY), tuple(UNARY), INPUTS, tuple(UNARY), tuple(UNARY), tuple(BINARY), tuple(POOLED))

TRACE: Genes = ("curvature", "same", "same", "curvature", "same", "same", "plus", "sum")  # twice the trace
SNIP: Genes = ("product", "abs", "same", "product", "abs", "same", "plus", "sum")


@dataclass(frozen=True, eq=False)
class Known:
    """What trees are made of."""

    numbers: Mapping[str, Sequence[Tensor]]  # by name: of every matrix float64 [n]
    counts: Sequence[int]  # numbers of the whole matrix


def scores(genes: Genes, known: Known) -> Tensor:
    """The score of every matrix, float64 [U]."""
    left, first, second, right, third, fourth, joint, pooled = genes
    one_U, other_U = known.numbers[left], known.numbers[right]
    found = []
    for one, other, count in zip(one_U, other_U, known.counts):
        ours = _through(one, first, second)
        theirs = _through(other, third, fourth)
        both = BINARY[joint](ours, theirs)
        found.append(POOLED[pooled](both, count))
    return torch.stack(found)


def _through(x: Tensor, first: str, second: str) -> Tensor:
    inner = UNARY[first](x)
    return UNARY[second](inner)


def words(genes: Genes) -> str:
    """A tree as a formula: `sum(square(same(weight)) times root(abs(gradient)))`."""
    left, first, second, right, third, fourth, joint, pooled = genes
    ours = _in_words(left, first, second)
    theirs = _in_words(right, third, fourth)
    both = f"{ours} {joint} {theirs}"
    return f"{pooled}({both})"


def _in_words(name: str, first: str, second: str) -> str:
    inner = f"{first}({name})"
    return f"{second}({inner})"


@dataclass(frozen=True, eq=False)
class Bank:
    """Mixes of widths, and how well the model does in each."""

    values_MU: Tensor  # what the width of each matrix counts for
    quality_M: Tensor

    def half(self, first: bool) -> Bank:
        """Every other mix."""
        start = 0 if first else 1
        return Bank(self.values_MU[start::2], self.quality_M[start::2])

    def agreement(self, score_U: Tensor) -> float:
        """Spearman's correlation of what scores predict with the quality; NaN for scores that tell nothing."""
        told_M = self.values_MU @ score_U
        spread = float(told_M.std())
        if not math.isfinite(spread) or not spread > 0:
            return math.nan
        found = spearmanr(told_M.numpy(), self.quality_M.numpy())
        return float(found.statistic)


@dataclass(frozen=True)
class Evolution:
    """How long proxies evolve."""

    population: int
    children: int
    tournament: int


def evolved(known: Known, bank: Bank, plan: Evolution, generator: torch.Generator) -> tuple[Genes, float]:
    """The tree that agrees best with the bank, and how well.

    Parents are the best of a tournament and the one there that is least like it; a child that is no number or the same
    everywhere is dropped, any other takes the place of the worst. Raises ValueError where no tree tells anything.
    """


    def fitness(genes: Genes) -> float:
        score_U = scores(genes, known)
        return bank.agreement(score_U)

    starts = [TRACE, SNIP]
    while len(starts) < plan.population:
        genes = tuple(_drawn(choices, generator) for choices in GENES)
        starts.append(genes)
    first = {genes: fitness(genes) for genes in starts}
    alive = {genes: value for genes, value in first.items() if not math.isnan(value)}
    if not alive:
        raise ValueError("no tree tells the mixes of the bank apart; try more of them (bank), or more trees "
                         "(population)")
    for _ in range(plan.children):
        child = _child(alive, plan.tournament, generator)
        value = math.nan if child in alive else fitness(child)
        if math.isnan(value):
            continue
        alive[child] = value
        if len(alive) > plan.population:
            worst = min(alive, key=alive.__getitem__)
            del alive[worst]
    best = max(alive, key=alive.__getitem__)
    return best, alive[best]


def _drawn(choices: Sequence[str], generator: torch.Generator) -> str:
    place = torch.randint(0, len(choices), (), generator=generator)
    return choices[int(place)]


def _child(alive: Mapping[Genes, float], tournament: int, generator: torch.Generator) -> Genes:
    """Genes of either parent, one of them drawn anew."""
    trees = list(alive)
    order = torch.randperm(len(trees), generator=generator)
    drawn = [trees[place] for place in order[:tournament].tolist()]
    best = max(drawn, key=alive.__getitem__)
    other = max(drawn, key=lambda tree: unlike(best, tree))
    genes = [_drawn(pair, generator) for pair in zip(best, other)]
    changed = torch.randint(0, len(GENES), (), generator=generator)
    place = int(changed)
    genes[place] = _drawn(GENES[place], generator)
    return tuple(genes)


def unlike(one: Genes, other: Genes) -> int:
    """In how many genes two trees differ."""
    pairs = zip(one, other)
    differ = [own != their for own, their in pairs]
    return sum(differ)
