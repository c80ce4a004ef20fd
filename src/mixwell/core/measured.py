"""Measurements of this machine, made once and kept on disk; one made while other programs ran is made again.

The file is `$XDG_CACHE_HOME/mixwell/measured.json`. A measurement is found again under a digest of what it measures,
the processor with the instruction sets in force, the number of threads and torch's version.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mixwell.core import machine
from mixwell.core.errors import MixwellError
from mixwell.core.files import digest, read_json, write_json

_USED: dict[tuple[Path, str], dict[str, Any]] = {}  # by this process, so that it never changes its mind
UNDISTURBED = 0.9  # share of the wall time that a measurement must have had its cores for


def cache_file() -> Path:
    """Where measurements are kept."""
    named = os.environ.get("XDG_CACHE_HOME")
    caches = Path(named) if named else Path.home() / ".cache"
    return caches / "mixwell" / "measured.json"


def kept(what: Any, measure: Callable[[], Mapping[str, Any]], threads: int = 1, *,
         once: bool = False, fields: Collection[str] = ()) -> dict[str, Any]:
    """The plain data that `measure` gives, from the disk where it was measured before.

    what: plain data that tells this measurement from others. threads: how many the measurement computes with.
    once: a disturbed measurement stands as well, for what must not change between two sittings of one training run.
    fields: names that the data must hold; what an older version kept without one of them is measured anew.
    A measurement disturbed by other programs is used now and made again by a later process that finds the machine
    free; of several disturbed ones the newest stands. A cache that cannot be read or written costs the time of
    measuring and nothing else.
    """
    key = digest([what, machine.cpu_model(), machine.capability(), threads, metadata.version("torch")])
    place = cache_file(), key
    found = _entry(key, fields)
    if place in _USED:
        return _USED[place]
    if found is not None and (not found["busy"] or machine.is_busy(threads)):
        return _USED.setdefault(place, found["values"])
    values, busy = _undisturbed(measure, threads)
    first = _entry(key, fields) if once else None  # of another process that measured at the same time
    _USED[place] = values = values if first is None else first["values"]
    entry = {"values": values, "busy": busy and not once, "what": what if isinstance(what, str) else str(what)[:80]}
    with contextlib.suppress(MixwellError, OSError):
        write_json(cache_file(), {**_read(), key: entry})
    return values


def disturbed(*, own: bool = False) -> list[str]:
    """Names of the measurements kept that other programs disturbed; `own`: of those that this process used."""
    here = cache_file()
    used = {key for place, key in _USED if place == here}
    names = []
    for key, entry in _read().items():
        asked = key in used or not own
        if asked and _is_entry(entry) and entry["busy"]:
            names.append(entry["what"])
    return sorted(names)


def _undisturbed(measure: Callable[[], Mapping[str, Any]], threads: int) -> tuple[dict[str, Any], bool]:
    """What `measure` gives, and whether this process had less than its share of the cores meanwhile."""
    wall, own = time.perf_counter(), time.process_time()
    values = dict(measure())
    wall, own = time.perf_counter() - wall, time.process_time() - own
    return values, own < UNDISTURBED * wall * min(threads, machine.physical_cores())


def _entry(key: str, fields: Collection[str]) -> dict[str, Any] | None:
    found = _read().get(key)
    if not _is_entry(found):
        return None
    assert isinstance(found, dict)
    return found if set(fields) <= set(found["values"]) else None


def _is_entry(found: Any) -> bool:
    if not isinstance(found, dict):
        return False
    values, busy = found.get("values"), found.get("busy")
    return isinstance(values, dict) and isinstance(busy, bool)


def _read() -> dict[str, Any]:
    try:
        found = read_json(cache_file())
    except (MixwellError, OSError):
        return {}
    return found if isinstance(found, dict) else {}
