"""Files and folders that appear whole or not at all, and stay."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixwell.core import disk
from mixwell.core.errors import MixwellError, disk_errors

LARGEST = 2**28  # bytes of a file that is read whole; a tokenizer of 256,000 tokens takes 2^25


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield an empty file beside `path`; it takes `path`'s place when the block ends well, else it is removed.

    A reader sees the old file or the new one, never a part, and after a crash so too; when this returns, the new one
    is there for good. The file gets the mode that the umask gives, whatever the block does to the one beside it (a
    library may write another in its place, private to the user).
    """
    path = Path(path)
    with disk_errors(path):
        scratch = _begin(path)
        mode = _create(scratch)
        try:
            yield scratch
            disk.sync_file(scratch)
            os.chmod(scratch, mode)
            os.replace(scratch, path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        disk.sync_folder(path.parent)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield a fresh folder beside `path`; it takes `path`'s place when the block ends well, else it is removed.

    What was promised of `whole_file` holds for it: all that the block wrote is on the disk before the name is.
    """
    path = Path(path)
    with disk_errors(path):
        scratch = _begin(path)
        scratch.mkdir()
        try:
            yield scratch
            disk.sync_tree(scratch)
            disk.put_folder(scratch, path)
        except BaseException:
            disk.remove(scratch)
            raise


def _begin(path: Path) -> Path:
    """A scratch name beside `path`, in a folder that is there and rid of what was left of earlier tries."""
    disk.make_folder(path.parent)
    disk.clear_scratch(path.parent, path.name)
    return disk.scratch_beside(path)


def _create(path: Path) -> int:
    """A new empty file; returns its mode, which only the system can tell without a moment of another umask."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write `data` to `path` whole or not at all; see `whole_file`."""
    with whole_file(path) as scratch:
        scratch.write_bytes(data)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8 to `path` atomically."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON to `path` whole or not at all. Not-a-number has no place in JSON and raises."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


def read_bytes(path: str | Path, most_bytes: int = LARGEST) -> bytes:
    """All of a regular file. One that is none, is not there, or is larger than `most_bytes` raises `MixwellError`.

    A device or a pipe may have no end, and to open a pipe may wait for ever.
    """
    path = Path(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MixwellError(f"{path} is not there; expected a file.") from error
    except OSError as error:
        raise MixwellError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        found = os.fstat(handle)
        check_regular(path, found)
        if found.st_size > most_bytes:
            raise MixwellError(f"{path} has {found.st_size} bytes; expected at most {most_bytes}.")
        with open(handle, "rb", closefd=False) as file:
            return file.read(most_bytes)
    finally:
        os.close(handle)


def check_regular(path: Path, found: os.stat_result) -> None:
    """Raise where what the system says of `path` is a folder, a device, a pipe or a socket."""
    if stat.S_ISDIR(found.st_mode):
        raise MixwellError(f"{path} is a folder; expected a file.")
    if not stat.S_ISREG(found.st_mode):
        raise MixwellError(f"{path} is a device, a pipe or a socket; expected a regular file.")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a missing or broken one is a `MixwellError` that names it."""
    data = read_bytes(path)
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MixwellError(f"{path} is not readable as JSON ({error}); restore it or remove it.") from error


def digest(value: Any) -> str:
    """SHA-256 (hex, 64 characters) of bytes, or of the canonical JSON of any other value."""
    if not isinstance(value, bytes):
        value = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()
    return hashlib.sha256(value).hexdigest()


def digest_file(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
