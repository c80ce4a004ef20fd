"""One process at a time writes into a run's folder.

The system lets go of the lock when its holder ends, however that ends: what a killed run left never keeps the next one
out. Beside it `.lock` says who took it last and when, for those who find it taken.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO

from mixwell.core.errors import MixwellError, disk_errors
from mixwell.core.units import seconds

FILE = ".lock"
TYPES = {"process": int, "born": str, "host": str}
LONGEST = 4096  # bytes of it that are read


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that took the lock last."""

    process: int
    born: str  # when it started, in the system's own count: another process may get the same number later
    host: str
    since: float  # seconds since 1970

    @classmethod
    def own(cls) -> Holder:
        """This process, now."""
        process = os.getpid()
        return cls(process=process, born=_born(process), host=socket.gethostname(), since=time.time())

    @property
    def age(self) -> str:
        """For how long it has held the lock, in words."""
        passed = max(0.0, time.time() - self.since)
        return seconds(float(round(passed)))

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended; one of another host never is."""
        here = self.host == socket.gethostname()
        return here and _born(self.process) != self.born


def _born(process: int) -> str:
    """When a process started, in ticks since the machine did; "" where no such process runs."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *rest = text.rpartition(")")[2].split()  # the name before it may hold spaces
    return "" if state == "Z" else rest[18]


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder for this process; where another one holds it, raise `MixwellError` that tells of it.

    A folder that is made for the lock and gets nothing else, since a mistake is told first, is taken away again.
    """
    created = [path for path in (out, *out.parents) if not path.exists()]
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with open(out / FILE, "a+", encoding="utf-8") as file:
            _take(file, out)
            _sign(file)
            try:
                yield
            finally:
                _take_away(created)


def _take(file: IO[str], out: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MixwellError(f"{_taken(out)}, or choose another folder with --out.") from None
    except OSError as error:
        raise MixwellError(f"{out} is on a disk that keeps no locks ({error.strerror}), where two runs could spoil "
                           "each other; choose a folder elsewhere with --out.") from error


def _sign(file: IO[str]) -> None:
    file.truncate(0)
    json.dump(asdict(Holder.own()), file)
    file.flush()


def _taken(out: Path) -> str:
    holder = signed(out)
    if holder is None:
        return f"{out} is in use by another process, which has not said which; wait for it to end"
    here = holder.host == socket.gethostname()
    where = "" if here else f" on {holder.host}"
    if holder.ended:
        return (f"{out} is held by what process {holder.process} left running when it ended ({holder.age} after it "
                "began); end that")
    return f"{out} is in use by process {holder.process}{where}, for {holder.age} now; wait for it to end"


def signed(out: Path) -> Holder | None:
    """Who took the folder's lock last; None where nobody did or `.lock` is not readable."""
    try:
        with open(out / FILE, encoding="utf-8") as file:
            found = json.loads(file.read(LONGEST))
        values = {field.name: found[field.name] for field in fields(Holder)}
        return Holder(**values) if _typed(values) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _typed(values: dict[str, object]) -> bool:
    found = {name: type(value) for name, value in values.items()}
    since = found.pop("since")
    return since in (int, float) and found == TYPES


def held(out: Path) -> bool:
    """Whether a process holds the folder now."""
    try:
        with open(out / FILE, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _take_away(created: Sequence[Path]) -> None:
    """Remove folders, innermost first, the first of which holds a lock and nothing else."""
    if created and [path.name for path in created[0].iterdir()] == [FILE]:
        (created[0] / FILE).unlink()
        with suppress(OSError):  # a parent may have got something else meanwhile
            for folder in created:
                folder.rmdir()
