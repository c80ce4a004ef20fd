"""Mutants: what is read from disk, changed by a seeded generator, and what becomes of each.

A mutant may end in four ways: refused in one line, the same numbers as the original, a trace or a hang, or, worst,
other numbers without a word. The tests try a few hundred of them; `tools/mutate_runs.py` tries as many as are asked
for.
"""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

from mixwell.core.errors import MixwellError

REFUSED, SAME = "refused in one line", "same numbers"
TRACE, HANG, CHANGED = "traceback", "hang over 5 s", "silent change"
OUTCOMES = (REFUSED, SAME, TRACE, HANG, CHANGED)
PATIENCE_S = 5.0
LONGEST = 3000  # characters of a line


def none_ends_badly(try_one: Callable[[int], Outcome], first: int, count: int = 50) -> None:
    """Of the mutants of so many seeds some are refused and some say the same, and nothing else becomes of any."""
    found = [try_one(seed) for seed in range(first, first + count)]
    bad = [one for one in found if one.outcome not in (REFUSED, SAME)]
    assert not bad, bad
    assert {one.outcome for one in found} == {REFUSED, SAME}


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


@contextmanager
def _alarm():
    def ring(number, frame):
        raise _TooLong

    usual = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 60 * PATIENCE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)


def outcome(kind: str, use: Callable[[], object]) -> Outcome:
    """What becomes of a mutant: `use` reads it, and raises `Change` where it finds other numbers.

    Seconds are those of this process, so that other programs make no hang; what waits for ever is caught by the clock.
    """
    clock = time.process_time()
    try:
        with _alarm():
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
    if time.process_time() - clock > PATIENCE_S:
        found = HANG
    return Outcome(kind, found, words)
