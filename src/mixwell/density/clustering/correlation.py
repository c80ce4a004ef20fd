"""Correlation clustering by costs of pairs and of triples: what some optimum joins or separates, and a partition.

**Equation:** minimise sum_pq c_pq x_pq + sum_pqr c_pqr x_pq x_pr x_qr over partitions, x = 1 where joined. With c+ =
max(c, 0), c- = max(-c, 0) and cut_g(i | J) the least sum of g, over U with i inside and J outside, of pairs and triples
not on one side: i and j are apart where c+_ij >= cut_c-(i | j); i, j and k are not all together where c+_ijk + c+_ij +
c+_ik >= cut_c-(i | jk); i and j are joined where 2 c-_ij + sum_r c-_ijr >= cut_|c|(i | j); a set S without positive
costs inside is joined where every way of cutting it costs, in c-, what leaves S in c- or more. Joins contract the set,
{j, t} gaining c_st + c_jst, until none is left; separations are read last.

**Shapes:** pair_NN and triple_NNN symmetric, diagonals unread; labels (N,), groups (N,), apart (N, N), split (M, 3).

**Reference:** Stein, Di Gregorio, Andres (2023), Partial Optimality in Cubic Correlation Clustering, ICML,
arXiv:2302.04694.

**Differs:** the conditions are derived anew, by maps that cut or join along U and never raise the cost, and not all of
the paper's are here: its joins of subgraphs are, as sets of two, of three and grown from two. Cuts are of integers,
rounded against the certificate. What is not settled is joined greedily, which is no optimum.

**Fails when:** costs of both signs balance: nothing is settled. N is beyond some fifty with triples, or a hundred
without (N^3 numbers are kept either way).

**Cost:** O(N^2) maximum flows of N^2 edges a round for pairs, as many again for each positive triple.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from mixwell.core.method import method
from mixwell.density._gaussian import Array

CONDITIONS = ("edge_cut", "triple_cut", "edge_join", "subset_join")
WHOLE = 2**30  # what the sum of all capacities becomes


@dataclass(frozen=True, kw_only=True)
class Config:
    """The conditions that are tried; `ValueError` for one that is not known."""

    conditions: tuple[str, ...] = CONDITIONS

    def __post_init__(self) -> None:
        unknown = [name for name in self.conditions if name not in CONDITIONS]
        if unknown:
            raise ValueError(f"conditions holds {unknown[0]!r}; expected some of {', '.join(CONDITIONS)}")


class Clustering(NamedTuple):
    """A partition, and what of it is proved: one optimum agrees with `groups`, `apart` and `split` at once."""

    labels_N: Array  # groups, joined further while that lowers the cost
    cost: float
    groups_N: Array  # elements of one group are together
    apart_NN: Array  # pairs that are not, true or false
    split_M3: Array  # triples that are not all together
    settled: float  # share of pairs that are together or apart for sure


class Costs(NamedTuple):
    """Costs of pairs (G, G) and of triples (G, G, G) of groups, zero on their diagonals."""

    pair_GG: Array
    triple_GGG: Array

    def part(self, sign: int) -> Array:
        """Capacities (G, G) of max(sign c, 0), those of triples halved: of a triple in parts, two pairs are cut."""
        pair_GG = np.maximum(sign * self.pair_GG, 0)
        triple_GGG = np.maximum(sign * self.triple_GGG, 0)
        return pair_GG + triple_GGG.sum(2) / 2

    def among(self, members: Sequence[int]) -> Costs:
        """Costs inside a set."""
        square = np.ix_(members, members)
        cube = np.ix_(members, members, members)
        return Costs(self.pair_GG[square], self.triple_GGG[cube])

    def largest(self) -> float:
        """The largest cost, zero at least."""
        of_pairs = self.pair_GG.max()
        of_triples = self.triple_GGG.max()
        return float(max(of_pairs, of_triples))

    def joined(self, keep: int, gone: int) -> Costs:
        """One group made of two; the last of the two is left out."""
        pair_GG, triple_GGG = self.pair_GG.copy(), self.triple_GGG.copy()
        moved_G = pair_GG[gone] + triple_GGG[keep, gone]
        pair_GG[keep] += moved_G
        pair_GG[:, keep] += moved_G
        moved_GG = triple_GGG[gone].copy()
        triple_GGG[keep] += moved_GG
        triple_GGG[:, keep] += moved_GG
        triple_GGG[:, :, keep] += moved_GG
        every = range(len(pair_GG))
        left = [place for place in every if place != gone]
        whole = cleared(pair_GG, triple_GGG)
        return whole.among(left)


def cleared(pair_GG: Array, triple_GGG: Array) -> Costs:
    """Costs with zeros where an index comes twice; both are written to."""
    np.fill_diagonal(pair_GG, 0)
    every_G = np.arange(len(pair_GG))
    triple_GGG[every_G, every_G] = 0
    triple_GGG[every_G, :, every_G] = 0
    triple_GGG[:, every_G, every_G] = 0
    return Costs(pair_GG, triple_GGG)


def least_cut(capacity_GG: Array, source: int, sinks: Sequence[int], rounded: np.ufunc = np.ceil) -> float:
    """The least cut between a group and others; capacities are rounded to integers, up or down."""
    total = capacity_GG.sum()
    if total == 0:
        return 0.0
    scale = WHOLE / total
    whole_GG = rounded(capacity_GG * scale).astype(np.int32)
    drain = sinks[0]
    for other in sinks[1:]:
        whole_GG[drain, other] = WHOLE
        whole_GG[other, drain] = WHOLE
    found = maximum_flow(csr_array(whole_GG), source, drain)
    return found.flow_value / scale


def is_cut(gain: float, capacity_GG: Array, source: int, sinks: Sequence[int]) -> bool:
    """Whether `gain` is no less than the least cut; groups alone on a side are tried before a flow."""
    alone = capacity_GG[source].sum()
    if len(sinks) == 1:
        other = capacity_GG[sinks[0]].sum()
        alone = min(alone, other)
    if gain >= alone:
        return True
    return gain > 0 and gain >= least_cut(capacity_GG, source, sinks)


def edge_cuts(costs: Costs) -> Iterator[tuple[int, int]]:
    """Pairs that are apart."""
    negative_GG = costs.part(-1)
    every = range(len(negative_GG))
    for i, j in itertools.combinations(every, 2):
        gain = costs.pair_GG[i, j]
        if gain >= 0 and is_cut(gain, negative_GG, i, [j]):
            yield i, j


def triple_cuts(costs: Costs) -> Iterator[tuple[int, int, int]]:
    """Triples that are not all together."""
    negative_GG = costs.part(-1)
    gain_GG = np.maximum(costs.pair_GG, 0)
    for three in itertools.combinations(range(len(negative_GG)), 3):
        own = max(costs.triple_GGG[three], 0.0)
        for i, j, k in (three, three[1:] + three[:1], three[2:] + three[:2]):
            gain = own + gain_GG[i, j] + gain_GG[i, k]
            if gain > 0 and is_cut(gain, negative_GG, i, [j, k]):
                yield three
                break


def edge_join(costs: Costs) -> tuple[int, int] | None:
    """A pair that is joined, by the least cut of all costs between."""
    capacity_GG = costs.part(1) + costs.part(-1)
    missed_GGG = np.maximum(-costs.triple_GGG, 0)
    gain_GG = 2 * np.maximum(-costs.pair_GG, 0) + missed_GGG.sum(2)
    for i, j in itertools.combinations(range(len(capacity_GG)), 2):
        gain = gain_GG[i, j]
        if gain > 0 and is_cut(gain, capacity_GG, i, [j]):
            return i, j
    return None


def subset_join(costs: Costs) -> tuple[int, ...] | None:
    """A set that is joined: it holds together by more than pulls at it from outside."""
    G = len(costs.pair_GG)
    for size in (2, 3):
        for members in itertools.combinations(range(G), size):
            if holds(costs, members):
                return members
    for pair in itertools.combinations(range(G), 2):
        members = grown(costs, pair)
        if len(members) > 3 and holds(costs, members):
            return members
    return None


def holds(costs: Costs, members: Sequence[int]) -> bool:
    """Whether a set without positive costs inside is cut for no less than all negative costs across its border."""
    own = list(members)
    inside = costs.among(own)
    if inside.largest() > 0:
        return False
    inner_SS = inside.part(-1)
    # a triple with one member or two outside is cut in two pairs, half of it at each
    whole_GG = costs.part(-1)
    pull = whole_GG[own].sum() - whole_GG[np.ix_(own, own)].sum()
    cuts = [least_cut(inner_SS, 0, [other], np.floor) for other in range(1, len(own))]
    tie = min(cuts)
    return tie > 0 and tie >= pull


def grown(costs: Costs, pair: tuple[int, int]) -> tuple[int, ...]:
    """A pair with the groups that pull most at it, as long as no cost inside is positive."""
    members = list(pair)
    left = set(range(len(costs.pair_GG))) - set(pair)
    while left:
        pull_G = costs.pair_GG[members].sum(0)
        best = min(left, key=lambda place: pull_G[place])
        larger = [*members, best]
        if pull_G[best] >= 0 or costs.among(larger).largest() > 0:
            break
        members = larger
        left.remove(best)
    return tuple(members)


@method(title="Correlation clustering of pairs and triples", year=2023, tags={"value"},
        paper="Partial Optimality in Cubic Correlation Clustering")
def correlation_clustering(pair_NN: Any, triple_NNN: Any = None, config: Config | None = None) -> Clustering:
    """Elements joined and separated by the costs of joining them, negative where they belong together; see the card.

    `ValueError` for costs that are not symmetric, not finite, or of shapes that disagree.
    """
    config = config or Config()
    costs = _costs(pair_NN, triple_NNN)
    N = len(costs.pair_GG)
    groups = [[n] for n in range(N)]
    left = costs
    while joined := _join(left, config):
        left, groups = _contracted(left, groups, joined)
    apart_GG, split = _separated(left, config)
    label_N = _greedy(left, groups, apart_GG)
    group_N = _numbered(groups)
    apart_NN = apart_GG[np.ix_(group_N, group_N)]
    first_G = np.array([min(members) for members in groups])
    split_M3 = first_G[np.array(split, dtype=int).reshape(-1, 3)]
    total = cost(costs, label_N)
    return Clustering(label_N, total, group_N, apart_NN, split_M3, settled(group_N, apart_NN))


def settled(group_N: Array, apart_NN: Array) -> float:
    """Share of pairs that are in one group or apart."""
    first, second = np.triu_indices(len(group_N), 1)
    together = group_N[first] == group_N[second]
    known = together | apart_NN[first, second]
    return float(known.mean()) if len(known) else 0.0


def cost(costs: Costs, label_N: Array) -> float:
    """The objective of a partition."""
    same_NN = label_N[:, None] == label_N
    same_NNN = same_NN[:, :, None] & same_NN[:, None]
    of_pairs = costs.pair_GG[same_NN].sum()
    of_triples = costs.triple_GGG[same_NNN].sum()
    return float(of_pairs / 2 + of_triples / 6)


def _costs(pair_NN: Any, triple_NNN: Any) -> Costs:
    """Costs as arrays of their own, checked."""
    pair = _copied(pair_NN)
    N = len(pair)
    triple = np.zeros((N, N, N)) if triple_NNN is None else _copied(triple_NNN)
    if pair.shape != (N, N) or triple.shape != (N, N, N):
        raise ValueError(f"costs have shapes {pair.shape} and {triple.shape}; expected (N, N) and (N, N, N)")
    finite = np.isfinite(pair).all() and np.isfinite(triple).all()
    turned = (triple.transpose(1, 0, 2), triple.transpose(0, 2, 1))
    equal = np.allclose(pair, pair.T) and all(np.allclose(triple, other) for other in turned)
    if not (finite and equal):
        raise ValueError("costs are not finite and symmetric; give every order of a pair or triple its cost")
    return cleared(pair, triple)


def _copied(values: Any) -> Array:
    return torch.as_tensor(values).double().numpy().copy()


def _join(costs: Costs, config: Config) -> tuple[int, ...] | None:
    """Groups that are joined in some optimum, if a condition tells."""
    if len(costs.pair_GG) < 2:
        return None
    if "edge_join" in config.conditions and (pair := edge_join(costs)):
        return pair
    return subset_join(costs) if "subset_join" in config.conditions else None


def _contracted(costs: Costs, groups: list[list[int]], joined: Sequence[int]) -> tuple[Costs, list[list[int]]]:
    """Costs and members after a set of groups became one."""
    keep, *others = sorted(joined)
    groups = [list(members) for members in groups]
    for gone in reversed(others):
        costs = costs.joined(keep, gone)
        members = groups.pop(gone)
        groups[keep] += members
    return costs, groups


def _separated(costs: Costs, config: Config) -> tuple[Array, list[tuple[int, int, int]]]:
    """Pairs of groups that are apart (G, G), and triples not all together of which no pair is known to be apart."""
    G = len(costs.pair_GG)
    apart_GG = np.zeros((G, G), dtype=bool)
    if "edge_cut" in config.conditions:
        for i, j in edge_cuts(costs):
            apart_GG[i, j] = True
            apart_GG[j, i] = True
    if "triple_cut" not in config.conditions:
        return apart_GG, []
    split = [three for three in triple_cuts(costs) if not apart_GG[np.ix_(three, three)].any()]
    return apart_GG, split


def _greedy(costs: Costs, groups: list[list[int]], apart_GG: Array) -> Array:
    """Labels (N,) after the join that lowers the cost most, again and again; what is apart stays apart."""
    forbidden = 1 + np.abs(costs.pair_GG).sum() + np.abs(costs.triple_GGG).sum()
    pair_GG = costs.pair_GG + forbidden * apart_GG
    left = Costs(pair_GG, costs.triple_GGG)
    while len(groups) > 1:
        flat = int(left.pair_GG.argmin())
        i, j = divmod(flat, len(groups))
        if left.pair_GG[i, j] >= 0:
            break
        left, groups = _contracted(left, groups, (i, j))
    return _numbered(groups)


def _numbered(groups: list[list[int]]) -> Array:
    """The group of every element (N,), numbered by their first elements."""
    label_N = np.empty(sum(map(len, groups)), dtype=int)
    for label, members in enumerate(sorted(groups, key=min)):
        label_N[members] = label
    return label_N


def example(generator: torch.Generator) -> dict[str, Any]:
    """Seven elements of two planted groups, with noise."""
    group_7 = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    noise_77 = 0.3 * torch.randn(7, 7, generator=generator, dtype=torch.float64)
    same_77 = group_7[:, None] == group_7
    pair_77 = torch.where(same_77, -1.0, 1.0) + noise_77 + noise_77.T
    same_777 = same_77[:, :, None] & same_77[:, None]
    triple_777 = torch.where(same_777, -0.5, 0.2)
    return {"pair_NN": pair_77, "triple_NNN": triple_777}
