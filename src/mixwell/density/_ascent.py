"""Coordinate ascent and expectation-maximisation, once for the methods that hold all rows in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

State = TypeVar("State")


@dataclass
class Run(Generic[State]):
    """What became of one start."""

    state: State
    bounds: list[float] = field(default_factory=list)  # one for every step, none below the one before
    converged: bool = False


def ascend(step: Callable[[State], tuple[State, float]], start: State, *, tol: float, max_iter: int,
           relative: bool = False, ahead: bool = False) -> Run[State]:
    """Steps until one gains less than `tol`, or that share of the bound's size where it is `relative`.

    step: gives a new state, and the bound of the one it was given, or where `ahead` that of the new one.
    """
    run = Run(start)
    for _ in range(max_iter):
        state, bound = step(run.state)
        least = tol * abs(bound) if relative else tol
        run.converged = bool(run.bounds) and bound - run.bounds[-1] < least
        run.bounds.append(bound)
        if ahead or not run.converged:  # else the last bound is the old state's, which stays
            run.state = state
        if run.converged:
            break
    return run


def highest(runs: list[Run[Any]]) -> Run[Any]:
    """The first run with the highest last bound."""
    return max(runs, key=lambda run: run.bounds[-1])
