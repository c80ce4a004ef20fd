"""What makes a write last: names of its own until it is whole, and the system told to keep it.

A crash may lose whatever the system was not told to keep: a file's bytes (`sync_file`), and apart from them the name
under which they stand (`sync_folder`).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from pathlib import Path

_SCRATCH = re.compile(r"\.(?P<name>.+)\.(?P<owner>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.tmp")
_STALE_S = 86400.0  # age at which the scratch of a process that cannot be asked for is nobody's
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)  # what file systems say that have nothing to do for it
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk: what was made, renamed or removed there."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """Wait until everything below a folder is on the disk, files before the folders that name them."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            inside = Path(folder, name)
            if inside.is_file() and not inside.is_symlink():
                sync_file(inside)
        sync_folder(Path(folder))


def make_folder(path: Path) -> None:
    """Make a folder with the parents that it lacks; all of them last."""
    lacking = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in lacking:
        sync_folder(made.parent)


def scratch_beside(path: Path) -> Path:
    """A hidden name in the same folder that nobody else has, and that tells whose it is."""
    owner, process = _owner(), os.getpid()
    mark = secrets.token_hex(4)
    name = f".{path.name}.{owner}-{process}-{mark}.tmp"
    return path.with_name(name)


def clear_scratch(folder: Path, name: str | None = None) -> None:
    """Remove what ended processes left half-written in a folder: of the file or folder `name`, or of all."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        found = _SCRATCH.fullmatch(path.name)
        if found is None or name not in (None, found["name"]):
            continue
        if _is_left(path, found["owner"], int(found["process"])):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    path.unlink(missing_ok=True)


def put_folder(scratch: Path, path: Path) -> None:
    """Let the folder `scratch` take the place of `path`, for good; what stood there is removed.

    At every moment `path` is the old one or the new one, where the file system can exchange two names (Linux's own
    can). Elsewhere there is a moment in which the old one has its scratch name only.
    """
    if not os.path.lexists(path):
        os.replace(scratch, path)
        sync_folder(path.parent)
        return
    old = scratch if _exchange(scratch, path) else _in_two_steps(scratch, path)
    sync_folder(path.parent)
    remove(old)


def _in_two_steps(scratch: Path, path: Path) -> Path:
    """Move `path` out of the way and `scratch` into its place; returns where the old one is."""
    old = scratch_beside(path)
    os.replace(path, old)
    try:
        os.replace(scratch, path)
    except OSError:
        os.replace(old, path)
        raise
    return old


def _exchange(first: Path, second: Path) -> bool:
    """Exchange what two names stand for, in one step; False where system or file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))


@functools.cache
def _owner() -> str:
    """Eight digits for this start of the system and its numbering of processes, which a container has for itself."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        facts = boot + os.readlink("/proc/self/ns/pid")
    except OSError:
        facts = platform.node()
    return hashlib.sha256(facts.encode()).hexdigest()[:8]


def _is_left(path: Path, owner: str, process: int) -> bool:
    """Whether the process that made a scratch has ended; one that another machine made counts as ended after a day."""
    if owner == _owner():
        return not _runs(process)
    try:
        age_s = time.time() - path.stat().st_mtime
    except OSError:  # gone meanwhile
        return False
    return age_s > _STALE_S


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
