"""What was found out about files, kept on disk until one of them changes: reading all text anew takes seconds a run.

A file counts as unchanged while its path, size, inode and times of change stay; that of its inode is set by the system
at every change, whatever a program says. One that changed a moment ago may do so again within the same tick of the
clock: nothing is kept then.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mixwell.core import measured
from mixwell.core.errors import MixwellError
from mixwell.core.files import digest, digest_file, read_json, write_json

State = tuple[str, int, int, tuple[int, int]]  # of a file: path, size, inode, times of change of its content and itself
MOST = 64  # findings kept, the newest
TICK_NS = 2_000_000_000  # no file system's clock is coarser


def cache_file() -> Path:
    """Where findings are kept."""
    return measured.cache_file().with_name("facts.json")


def kept(what: Any, files: Iterable[Path], find: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The plain data that `find` gives, from the disk where it was found before and no file changed since.

    what: plain data that tells this finding from others. files: all that it was read from, the source that read it
    included. A cache that cannot be read or written costs the time of finding and nothing else.
    """
    states = [_state(path) for path in files]
    key = digest([what, sys.version, states])
    found = _read().get(key)
    if isinstance(found, dict):
        return found
    values = dict(find())
    if all(max(changed) < time.time_ns() - TICK_NS for *_, changed in states):
        with contextlib.suppress(MixwellError, OSError):
            newest = list(_read().items())[-(MOST - 1) :]
            write_json(cache_file(), {**dict(newest), key: values})
    return values


def state(files: Iterable[Path]) -> str:
    """Digest of the states of files: another as soon as one of them changes."""
    return digest([_state(path) for path in files])


def digest_once(path: Path) -> str:
    """Digest of a file, which this process reads again only after a change."""
    return _digest(path, _state(path))


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, state: State) -> str:
    return digest_file(path)


def _state(path: Path) -> State:
    found = path.stat()
    return os.path.abspath(path), found.st_size, found.st_ino, (found.st_mtime_ns, found.st_ctime_ns)


def _read() -> dict[str, Any]:
    try:
        found = read_json(cache_file())
    except (MixwellError, OSError):
        return {}
    return found if isinstance(found, dict) else {}
