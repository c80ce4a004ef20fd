"""Sequences of unequal length go to groups of workers of unequal size, chosen anew each step by an integer program.

**Equation:** a sequence of s tokens takes a group of p workers t(s, p) = (a s^2 + b s) / p + c s / (p B(p)), B the rate
    of the link that the group spans; a group takes bias + the sum of its sequences. With n(l, g) sequences of length l
    in group g and m(g) whether group g is there:
    least M such that for every g  bias m(g) + sum_l n(l, g) t(l, p_g) <= M,  sum_l n(l, g) l <= p_g C m(g),
    sum_g n(l, g) = how many there are,  sum_g p_g m(g) <= N; C tokens fit a worker, p are powers of two.
    Lengths are gathered in buckets, each counted at its longest, cut so that least is counted too much. A batch that is
    too large for all workers is cut.
**Shapes:** lengths [S]; the group of each sequence [S]; the workers of each group [G].
**Reference:** Wang et al. 2024 (2412.01523), FlexSP, section 4; its solver in Hetu-Galvatron for constants.
**Differs:** scipy's HiGHS in the place of SCIP, stopped at a relative gap instead of a clock, so that the same lengths
    give the same groups; what greedy assignment to equal groups finds is kept where it is no worse.
**Fails when:** all lengths are alike, or all links: equal groups are then best, and the program only finds them.
**Cost:** an integer program of buckets times 2 N - 1 groups, to be solved during the step before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_above, check_least, check_not_negative

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Config:
    """A cluster, and what a token costs on it; the defaults are the paper's, of a model of 7 billion parameters."""

    workers: int = 16  # N, a power of two
    node: int = 8  # workers of a node, a power of two
    capacity: int = 16_384  # C, tokens that fit a worker
    square_s: float = 5.128e-9  # a, seconds for each squared token
    token_s: float = 1.84e-4  # b, seconds a token
    bias_s: float = 0.629  # of a group, whatever its sequences
    token_bytes: float = 4_194_304.0  # c, that a token sends on in all layers, there and back
    inside_bytes_per_s: float = 140e9  # B of a group within a node
    between_bytes_per_s: float = 8.7e9  # B of a group over nodes
    buckets: int = 10  # of lengths, at most
    gap: float = 0.02  # relative distance from the best at which the solver stops
    nodes_searched: int = 300  # of the solver's tree, at most

    def __post_init__(self) -> None:
        check_least(self, workers=1, node=1, capacity=1, buckets=1, nodes_searched=1)
        check_above(self, inside_bytes_per_s=0, between_bytes_per_s=0)
        check_not_negative(self, "square_s", "token_s", "bias_s", "token_bytes", "gap")
        for name in ("workers", "node"):
            count = getattr(self, name)
            if count & (count - 1):
                raise ValueError(f"{name} is {count}; expected a power of two")

    @property
    def sizes(self) -> list[int]:
        """Of groups: powers of two."""
        return [2**power for power in range(self.workers.bit_length())]


class Groups(NamedTuple):
    """Where the sequences of one pass go."""

    places: list[int]  # of the sequences, in the batch
    group: list[int]  # of each of them
    sizes: list[int]  # workers of each group
    seconds: float  # of the slowest group


def sequence_s(length: float, size: int, config: Config) -> float:
    """Seconds of a sequence in a group of so many workers."""
    within = size <= config.node
    rate = config.inside_bytes_per_s if within else config.between_bytes_per_s
    token_s = config.token_s + config.square_s * length
    if size > 1:
        token_s += config.token_bytes / rate
    return length * token_s / size


def pass_s(lengths: Sequence[int], group: Sequence[int], sizes: Sequence[int], config: Config) -> float:
    """Seconds of the slowest group."""
    taken = dict.fromkeys(group, config.bias_s)
    for length, number in zip(lengths, group):
        size = sizes[number]
        taken[number] += sequence_s(length, size, config)
    return max(taken.values())


def packed(lengths: Sequence[int], sizes: Sequence[int], config: Config) -> list[int] | None:
    """The group of each sequence, the longest first, each to the group that is then done first; None where one does
    not fit."""
    room = [config.capacity * size for size in sizes]
    taken = [0.0] * len(sizes)
    found = [0] * len(lengths)
    for place in longest_first(lengths):
        length = lengths[place]
        ends = {}
        for number, size in enumerate(sizes):
            if room[number] >= length:
                ends[number] = taken[number] + sequence_s(length, size, config)
        if not ends:
            return None
        chosen = min(ends, key=ends.__getitem__)
        found[place] = chosen
        taken[chosen] = ends[chosen]
        room[chosen] -= length
    return found


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Places by length."""
    places = range(len(lengths))
    return sorted(places, key=lambda place: -lengths[place])


def equal_groups(lengths: Sequence[int], size: int, config: Config) -> Groups | None:
    """All workers in groups of one size; None where the sequences do not fit."""
    sizes = [size] * (config.workers // size)
    group = packed(lengths, sizes, config)
    if group is None:
        return None
    seconds = pass_s(lengths, group, sizes, config)
    return Groups(list(range(len(lengths))), group, sizes, seconds)


def best_equal(lengths: Sequence[int], config: Config) -> Groups | None:
    """Equal groups of the best size for these sequences: the baseline that adapts, too."""
    tried = [equal_groups(lengths, size, config) for size in config.sizes]
    there = [one for one in tried if one is not None]
    return min(there, key=lambda one: one.seconds) if there else None


def bucketed(lengths: Sequence[int], most: int) -> tuple[list[int], list[list[int]]]:
    """(the longest of each bucket, the places of its sequences), with the fewest tokens that are counted too much."""
    order = longest_first(lengths)[::-1]
    rising = [lengths[place] for place in order]
    buckets = min(most, len(order))
    edges = [0, *_cuts(rising, buckets)]
    places = [order[first:end] for first, end in itertools.pairwise(edges)]
    tops = [rising[end - 1] for end in edges[1:]]
    return tops, places


def _cuts(rising: Sequence[int], buckets: int) -> list[int]:
    """Where the buckets of rising lengths end, by a dynamic program over the first j of them."""
    count = len(rising)
    tops = np.array([0, *rising])
    sums = tops.cumsum()
    numbers = np.arange(count + 1)
    waste = (numbers - numbers[:, None]) * tops - (sums - sums[:, None])  # of a bucket from i up to j
    waste = np.where(numbers > numbers[:, None], waste, np.inf)
    best = np.where(numbers == 0, 0.0, np.inf)
    froms = []
    for _ in range(buckets):
        through = best[:, None] + waste
        froms.append(through.argmin(0))
        best = through.min(0)
    ends = [count]
    for came in reversed(froms[1:]):
        ends.insert(0, int(came[ends[0]]))
    return ends


def solved(lengths: Sequence[int], config: Config) -> Groups | None:
    """Groups of the integer program; None where it finds none."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    tops, places = bucketed(lengths, config.buckets)
    counts = [len(own) for own in places]
    sizes = [size for size in config.sizes for _ in range(config.workers // size)]
    constraint = LinearConstraint(*_program(tops, counts, sizes, config))
    groups = len(sizes)
    cells = len(tops) * groups
    whole = np.append(np.ones(cells + groups), 0)
    highest = np.repeat([np.inf, 1, np.inf], [cells, groups, 1])
    limits = {"mip_rel_gap": config.gap, "node_limit": config.nodes_searched}
    found = milp(1 - whole, integrality=whole, bounds=Bounds(0, highest), constraints=constraint, options=limits)
    if found.x is None:
        return None
    counts_LG = np.rint(found.x[:cells]).reshape(-1, groups)
    group = _dealt(counts_LG.astype(int), places)
    return _used(lengths, group, sizes, config)


def _program(tops: Sequence[int], counts: Sequence[int], sizes: Sequence[int],
             config: Config) -> tuple[Array, Array, Array]:
    """Rows of the program and their bounds; columns are n(l, g), then m(g), then M."""
    buckets, groups = len(tops), len(sizes)
    width = buckets * groups + groups + 1
    rows: list[Array] = []
    lows: list[float] = []
    highs: list[float] = []

    def add(row: Array, low: float, high: float) -> None:
        rows.append(row)
        lows.append(low)
        highs.append(high)

    for bucket, count in enumerate(counts):
        row = np.zeros(width)
        row[bucket * groups : (bucket + 1) * groups] = 1
        add(row, count, count)
    for number, size in enumerate(sizes):
        own = np.arange(buckets) * groups + number
        there = buckets * groups + number
        row = np.zeros(width)
        row[own] = [sequence_s(top, size, config) for top in tops]
        row[there], row[-1] = config.bias_s, -1
        add(row, -np.inf, 0)
        row = np.zeros(width)
        row[own], row[there] = tops, -size * config.capacity
        add(row, -np.inf, 0)
        if number and sizes[number - 1] == size:  # of equal groups the first ones are used
            row = np.zeros(width)
            row[there - 1], row[there] = -1, 1
            add(row, -np.inf, 0)
    row = np.zeros(width)
    row[buckets * groups : -1] = sizes
    add(row, 0, config.workers)
    return np.stack(rows), np.array(lows), np.array(highs)


def _dealt(counts_LG: Array, places: Sequence[Sequence[int]]) -> list[int]:
    """The group of each sequence, by how many of each bucket a group takes."""
    group = [0] * sum(map(len, places))
    for counts_G, own in zip(counts_LG, places):
        dealt = np.repeat(np.arange(len(counts_G)), counts_G)
        for place, number in zip(own, dealt.tolist()):
            group[place] = number
    return group


def _used(lengths: Sequence[int], group: Sequence[int], sizes: Sequence[int], config: Config) -> Groups:
    """The groups that got a sequence, numbered anew."""
    used = sorted(set(group))
    numbers = {old: new for new, old in enumerate(used)}
    kept = [sizes[old] for old in used]
    renamed = [numbers[old] for old in group]
    seconds = pass_s(lengths, renamed, kept, config)
    return Groups(list(range(len(lengths))), renamed, kept, seconds)


def assigned(lengths: Sequence[int], config: Config) -> list[Groups]:
    """Groups for each pass of a batch: one pass where all workers hold it, else as few as do.

    Raises `ValueError` for a sequence that all workers together do not hold.
    """
    whole = config.workers * config.capacity
    if max(lengths) > whole:
        raise ValueError(f"a sequence has {max(lengths)} tokens; {config.workers} workers hold {whole}")
    order = longest_first(lengths)
    fewest = math.ceil(sum(lengths) / whole)
    for count in range(fewest, len(order) + 1):
        cut = [order[first::count] for first in range(count)]
        found = [_pass(own, lengths, config) for own in cut]
        there = [one for one in found if one is not None]
        if len(there) == count:
            return there
    raise AssertionError("every sequence alone fits all workers")


def _pass(places: list[int], lengths: Sequence[int], config: Config) -> Groups | None:
    """The better of the program's groups and equal ones; None where neither holds the sequences."""
    own = [lengths[place] for place in places]
    tried = [solved(own, config), best_equal(own, config)]
    there = [one for one in tried if one is not None]
    best = min(there, key=lambda one: one.seconds, default=None)
    return None if best is None else best._replace(places=places)


class Found(NamedTuple):
    """For each sequence its pass, its group there and the workers of that group; the seconds of all passes."""

    pass_S: Tensor
    group_S: Tensor
    size_S: Tensor
    seconds: Tensor


@method(
    title="Sequences to groups of unequal size",
    paper="Data-Centric and Heterogeneity-Adaptive Sequence Parallelism for Efficient LLM Training",
    year=2024,
)
def sequence_groups(lengths_S: Tensor, config: Config) -> Found:
    """Where each sequence of a batch goes, from their lengths in tokens; see `assigned`."""
    lengths = lengths_S.long().tolist()
    pass_S = torch.zeros_like(lengths_S)
    group_S = torch.zeros_like(lengths_S)
    size_S = torch.zeros_like(lengths_S)
    seconds = torch.zeros((), dtype=torch.float64)
    for number, one in enumerate(assigned(lengths, config)):
        own = torch.tensor(one.places)
        group = torch.tensor(one.group)
        sizes = torch.tensor(one.sizes)
        pass_S[own] = number
        group_S[own] = group
        size_S[own] = sizes[group]
        seconds += one.seconds
    return Found(pass_S, group_S, size_S, seconds)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twelve sequences, most of them short, for eight workers on nodes of four."""
    logs = 7 + 1.2 * torch.randn(12, generator=generator)
    lengths = logs.exp().clamp(64, 30_000)
    config = Config(workers=8, node=4, capacity=8192)
    return {"lengths_S": lengths.long(), "config": config}
