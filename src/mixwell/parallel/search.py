"""All layouts of a training step over so many processes, the fastest that memory holds, and why it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mixwell.core.errors import MixwellError
from mixwell.core.units import percent, seconds, si
from mixwell.parallel.cluster import Cluster
from mixwell.parallel.simulate import Estimate, estimate, fits
from mixwell.parallel.workload import Spread, Work, misfit

MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)  # that are tried for a pipeline
NEAR = 0.05  # share of a step's time below which a difference is none


class Tried(NamedTuple):
    """A layout and what it takes."""

    spread: Spread
    found: Estimate
    fits: bool  # whether a process's memory holds it


def layouts(work: Work, processes: int) -> Iterator[Spread]:
    """Every layout over exactly so many processes in which the work can lie."""
    for tensor, sequence, expert, data, pipeline in _factors(processes, 5):
        micro = MICRO_BATCHES if pipeline > 1 else (work.accumulate,)
        copies = data * expert * sequence
        for count in micro:
            for sharded in (False, True) if copies > 1 else (False,):
                spread = Spread(data=data, expert=expert, tensor=tensor, sequence=sequence, pipeline=pipeline,
                                sharded=sharded, micro_batches=count)
                if not misfit(work, spread):
                    yield spread


def _factors(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """The ways to write a number as a product of so many factors, in every order."""
    if parts == 1:
        yield (number,)
        return
    for first in range(1, number + 1):
        if number % first == 0:
            for rest in _factors(number // first, parts - 1):
                yield (first, *rest)


def search(work: Work, cluster: Cluster) -> list[Tried]:
    """All layouts over the whole cluster: those that fit in memory first, the fastest of them at the front.

    Raises `MixwellError` where there is none.
    """
    tried = []
    for spread in layouts(work, cluster.processes):
        found = estimate(work, spread, cluster)
        tried.append(Tried(spread, found, fits(found, cluster.device)))
    if not tried:
        plain = Spread(data=cluster.processes, micro_batches=work.accumulate)
        raise MixwellError(f"no layout of {cluster.processes} processes holds this training: {misfit(work, plain)} "
                           "cannot be shared out evenly. Change train.batch_size, or plan for another number.")
    return sorted(tried, key=_order)


def _order(one: Tried) -> tuple[bool, float, int]:
    """What fits first, then the fastest (of what does not fit: the smallest), then what splits fewest things."""
    spread, found = one.spread, one.found
    sizes = (spread.tensor, spread.sequence, spread.expert, spread.pipeline)
    split = sum(size > 1 for size in sizes)
    measure = found.seconds if one.fits else found.memory_bytes
    return not one.fits, measure, split


def reason(tried: Sequence[Tried], cluster: Cluster) -> str:
    """A line that says why the first is first."""
    best = tried[0]
    name = best.spread.words()
    if not best.fits:
        return f"no layout fits: the smallest, {name}, needs {_memory(best, cluster)}."
    rival = _rival(tried)
    if rival is None:
        return f"{name} is the only layout that the training allows."
    if not rival.fits:
        other = rival.spread.words()
        return f"{other} would need {_memory(rival, cluster)}; {name} is the fastest that fits."
    return _against(best, rival)


def _rival(tried: Sequence[Tried]) -> Tried | None:
    """What the first is held against: copies of the whole model, else the second."""
    others = tried[1:]
    plain = [one for one in others if one.spread.is_plain]
    return next(iter([*plain, *others]), None)


def _memory(one: Tried, cluster: Cluster) -> str:
    needed = si(one.found.memory_bytes, "B")
    there = si(cluster.device.memory_bytes, "B")
    return f"{needed} of the {there} of a process"


def _against(best: Tried, rival: Tried) -> str:
    """Which part of a step makes the difference."""
    ours, theirs = best.found, rival.found
    share = 1 - ours.seconds / theirs.seconds
    names = best.spread.words(), rival.spread.words()
    if share < NEAR:
        both = " and ".join(names)
        return f"{both} take equally long, within {percent(NEAR, 0)}."
    parts = {"computing": theirs.computing_s - ours.computing_s, "waiting": theirs.idle_s - ours.idle_s,
             "sending": theirs.sending_s - ours.sending_s}
    most = max(parts, key=parts.__getitem__)
    sent = f", {si(ours.sent, 'B')} in place of {si(theirs.sent, 'B')}" if most == "sending" else ""
    less = f"{seconds(parts[most])} of it by less {most}"
    return f"{names[0]} takes {percent(share, 0)} less time than {names[1]}, {less}{sent}."


def trainable(tried: Sequence[Tried]) -> Tried | None:
    """The first layout in which `mixwell run` trains."""
    there = (one for one in tried if one.spread.trains and one.fits)
    return next(there, None)
