"""Mutants: what is read from disk, changed by a seeded generator, and what becomes of each.

Of a mutant one of these becomes:

    refused    one line that says what is wrong
    same       read, with the very numbers of the original
    told       other numbers, and a warning says why
    unknown    other numbers, which no record, digest or checksum speaks against: it came from another program
    traceback  an error that is not for people
    hang       no end within 5 s of the processor, or ten minutes by the clock
    silent     other numbers without a word, in spite of a record, digest or checksum

The last three are faults. The tests try a few hundred mutants; `tools/mutate_inputs.py` tries as many as are asked for.
"""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from mixwell.core.errors import MixwellError

REFUSED, SAME, TOLD, UNKNOWN = "refused", "same", "told", "unknown"
TRACE, HANG, CHANGED = "traceback", "hang", "silent"
FAULTS = (TRACE, HANG, CHANGED)
OUTCOMES = (REFUSED, SAME, TOLD, UNKNOWN, *FAULTS)
PATIENCE_S = 5.0  # of the processor, so that other programs make no hang
ASLEEP_S = 600.0  # by the clock: a busy machine gives a process little of its processor
TICK_S = 0.25
LONGEST = 1500  # characters of a line


class Mutants(Protocol):
    """Mutants of one kind of input, one for each seed."""

    def try_one(self, seed: int) -> Outcome:
        """Make the mutant of that seed and use it as mixwell does."""


def none_ends_badly(try_one: Callable[[int], Outcome], first: int, count: int = 50) -> None:
    """Of the mutants of so many seeds some are refused and some say the same, and none is a fault."""
    found = [try_one(seed) for seed in range(first, first + count)]
    bad = [one for one in found if one.outcome in FAULTS]
    assert not bad, bad
    assert {REFUSED, SAME} <= {one.outcome for one in found}


class Change(AssertionError):
    """A mutant was taken, and what it says is not what the original says."""


class _TooLong(BaseException):
    """No `Exception`, so that what is tried cannot catch it."""


@dataclass(frozen=True)
class Outcome:
    """How one mutant ended."""

    kind: str  # what was done to it
    outcome: str
    words: str = ""  # the refusal, or the end of the trace
    seconds: float = 0.0  # of the processor


@contextmanager
def _watched() -> Iterator[None]:
    """Ends what takes too long. A process that is stopped hears one tick for all that while."""
    begun, ticks = time.process_time(), 0

    def tick(number: int, frame: object) -> None:
        nonlocal ticks
        ticks += 1
        computed = time.process_time() - begun
        asleep = ticks * TICK_S - computed
        if computed > PATIENCE_S or asleep > ASLEEP_S:
            raise _TooLong

    usual = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)


def outcome(kind: str, use: Callable[[], object]) -> Outcome:
    """What becomes of a mutant: `use` reads it, and raises `Change` where it finds other numbers."""
    begun = time.process_time()
    try:
        with _watched():
            words = str(use() or "")
        found = REFUSED if words else SAME
    except MixwellError as error:
        words = str(error)
        found = REFUSED if "\n" not in words and len(words) < LONGEST else TRACE
    except Change as error:
        found, words = CHANGED, str(error)
    except _TooLong:
        found, words = HANG, ""
    except Exception:
        found, words = TRACE, traceback.format_exc()
    seconds = time.process_time() - begun
    if seconds > PATIENCE_S:
        found = HANG
    return Outcome(kind, found, words, seconds)
