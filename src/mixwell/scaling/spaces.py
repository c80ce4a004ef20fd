"""A language of tree-structured search spaces: blocks with options, one after another, alternatives, repeats.

In plain data, as a recipe writes it:

    {method: experts.layers.moe, num_experts: [4, 8, 16], hidden_dim: 64}   a block; several values are a choice
    [A, B]                                                                  B after A
    {or: [A, B]}    {optional: A}    {repeat: A, times: [1, 2, 4]}    {tied: A, times: [1, 2, 4]}

`tied` repeats one choice of A, `repeat` chooses anew each time. `walk` asks for every choice of more than one value in
a fixed order, and returns the blocks, each a mapping that a recipe's `channel_mixer` takes as it is.

Legend: N leaves, D decisions of the longest.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.scaling.trials import Trials

Choose = Callable[[int, bool], int]  # how many values, and whether they are ordered -> which
Blocks = list[dict[str, Any]]
MOST = 20_000  # leaves that are listed at most
FORMS = ("or", "optional", "repeat", "tied", "method")


@dataclass(frozen=True)
class Block:
    """A method with options, of which some are choices."""

    options: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class After:
    """Spaces one after another."""

    parts: tuple[Space, ...]


@dataclass(frozen=True)
class Either:
    """One of several spaces."""

    parts: tuple[Space, ...]


@dataclass(frozen=True)
class Repeated:
    """A space several times: chosen anew each time, or once for all."""

    part: Space
    times: tuple[int, ...]
    tied: bool = False


Space = Block | After | Either | Repeated


def space(plain: Any) -> Space:
    """A space from plain data; what is no form of the language raises `MixwellError`."""
    if isinstance(plain, list):
        return After(_spaces(plain))
    if not isinstance(plain, Mapping):
        raise MixwellError(f"{plain!r} is no space; expected a block, a list or one of {', '.join(FORMS)}.")
    if "method" in plain:
        return Block(_values(plain))
    if "or" in plain:
        return Either(_either(plain["or"]))
    if "optional" in plain:
        nothing = After(())
        there = space(plain["optional"])
        return Either((nothing, there))
    return _repeated(plain)


def _either(plain: Any) -> tuple[Space, ...]:
    """What is chosen from; `MixwellError` for nothing."""
    if not isinstance(plain, list) or not plain:
        raise MixwellError(f"`or` is {plain!r}; expected a list of one space or more.")
    return _spaces(plain)


def _spaces(plain: Sequence[Any]) -> tuple[Space, ...]:
    return tuple(map(space, plain))


def _repeated(plain: Mapping[str, Any]) -> Repeated:
    """Either kind of repeats; `MixwellError` for neither."""
    tied = "tied" in plain
    part = plain.get("tied", plain.get("repeat"))
    if part is None or "times" not in plain:
        raise MixwellError(f"{dict(plain)} is no space; expected {', '.join(FORMS)}, the repeats with `times`.")
    times = _listed(plain["times"])
    if min(times, default=-1) < 0:
        raise MixwellError(f"times is {plain['times']}; expected whole numbers of 0 or more.")
    return Repeated(space(part), tuple(times), tied)


def _values(plain: Mapping[str, Any]) -> dict[str, list[Any]]:
    found = {}
    for name, value in plain.items():
        found[name] = _listed(value)
        if not found[name]:
            raise MixwellError(f"option {name!r} has no values to choose from.")
    return found


def _listed(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    return [value]


def count(inside: Space) -> int:
    """How many ways there are through a space: products over parts, sums over alternatives, powers over repeats."""
    if isinstance(inside, Block):
        return math.prod(map(len, inside.options.values()))
    if isinstance(inside, After):
        return math.prod(map(count, inside.parts))
    if isinstance(inside, Either):
        return sum(map(count, inside.parts))
    each = count(inside.part)
    if inside.tied:
        return each * len(inside.times)
    return sum(each**number for number in inside.times)


def walk(inside: Space, choose: Choose) -> Blocks:
    """The blocks of one way through a space; choices of one value are not asked for."""

    def pick(values: Sequence[Any], ordered: bool) -> Any:
        place = choose(len(values), ordered) if len(values) > 1 else 0
        return values[place]

    if isinstance(inside, Block):
        block = {}
        for name, values in inside.options.items():
            block[name] = pick(values, all(isinstance(value, int | float) for value in values))
        return [block]
    if isinstance(inside, After):
        parts = [walk(part, choose) for part in inside.parts]
        return list(itertools.chain(*parts))
    if isinstance(inside, Either):
        return walk(pick(inside.parts, False), choose)
    times = pick(inside.times, True)
    if inside.tied:
        return walk(inside.part, choose) * times
    repeats = [walk(inside.part, choose) for _ in range(times)]
    return list(itertools.chain(*repeats))


def bisected(choose: Choose) -> Choose:
    """The same choices, ordered ones by halves: neighbours then share what is learned of their half."""

    def halved(values: int, ordered: bool) -> int:
        if not ordered:
            return choose(values, ordered)
        low, high = 0, values
        while high - low > 1:
            middle = (low + high + 1) // 2
            if choose(2, True):
                low = middle
            else:
                high = middle
        return low

    return halved


def ways(inside: Space, halves: bool = False) -> Iterator[tuple[list[int], Blocks]]:
    """Every way through a space: its decisions and its blocks, in the order of a tree."""
    asked: list[int] = []  # how many values the decisions of the last way had
    taken: list[int] = []
    while True:
        ahead = list(taken)
        asked, taken = [], []

        def choose(values: int, ordered: bool, asked: list[int] = asked, taken: list[int] = taken,
                   ahead: list[int] = ahead) -> int:
            place = ahead[len(taken)] if len(taken) < len(ahead) else 0
            asked.append(values)
            taken.append(place)
            return place

        blocks = walk(inside, bisected(choose) if halves else choose)
        yield list(taken), blocks
        while taken and taken[-1] + 1 == asked[len(taken) - 1]:
            taken.pop()
        if not taken:
            return
        taken[-1] += 1


def listed(inside: Space, halves: bool = False) -> tuple[np.ndarray, list[Blocks]]:
    """Decisions of every way, [N, D], -1 after its last one, and its blocks; too many raise `MixwellError`."""
    total = count(inside)
    if total > MOST:
        raise MixwellError(f"the space has {total} ways; expected {MOST} at most. Give options fewer values.")
    every = list(ways(inside, halves))
    longest = max(len(taken) for taken, _ in every)
    taken_ND = np.full((len(every), longest), -1)
    for row, (taken, _) in zip(taken_ND, every):
        row[: len(taken)] = taken
    return taken_ND, [blocks for _, blocks in every]


def grams(every: Sequence[Blocks], longest: int = 4, least: int = 3) -> np.ndarray:
    """Counts of the rows of 1 to `longest` methods that occur `least` times in all, and of the blocks: [N, F]."""
    counted = [_counted(blocks, longest) for blocks in every]
    total: Counter[tuple[str, ...]] = Counter()
    for own in counted:
        total += own
    kept = [gram for gram in sorted(total) if total[gram] >= least]
    rows = []
    for own, blocks in zip(counted, every):
        row = [own[gram] for gram in kept]
        rows.append([*row, len(blocks)])
    return np.array(rows, dtype=np.float64)


def _counted(blocks: Blocks, longest: int) -> Counter[tuple[str, ...]]:
    """How often each row of up to so many methods stands in a way."""
    names = [block["method"] for block in blocks]
    found: Counter[tuple[str, ...]] = Counter()
    for start in range(len(names)):
        after = names[start : start + longest]
        for size in range(1, len(after) + 1):
            gram = tuple(after[:size])
            found[gram] += 1
    return found


def trials(plain: Any, evaluate: Callable[[Blocks, int], float], most: int, halves: bool = True) -> Trials:
    """Trials of every way through a space in plain data; `evaluate(blocks, epochs)` gives the validation loss."""
    taken_ND, every = listed(space(plain), halves)

    def known(trial: int, epochs: int) -> float:
        return evaluate(every[trial], epochs)

    return Trials(known, len(every), most, taken_ND)
