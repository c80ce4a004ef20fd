"""Digests of the files in a folder, taken when they are written and held against them when they are read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixwell.core.files import digest, digest_file


@dataclass(frozen=True, kw_only=True)
class FileDigest:
    """What a file held when it was written."""

    bytes: int
    sha256: str  # hex


def of_folder(folder: Path) -> dict[str, FileDigest]:
    """Path below `folder` -> digest, of every file there that is not hidden, in alphabetical order."""
    found = {}
    for name in sorted(visible(folder)):
        path = folder / name
        found[name] = FileDigest(bytes=path.stat().st_size, sha256=digest_file(path))
    return found


def visible(folder: Path) -> Iterator[str]:
    """Paths below `folder` of the files there, those left out that are hidden or lie in hidden folders."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(place).relative_to(folder)
        for name in files:
            if not name.startswith("."):
                yield str(below / name)


def wrong(path: Path, expected: FileDigest) -> str:
    """What is wrong with a file that was written as `expected`, in a few words; "" where nothing is."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return "is no file"
        if found.st_size != expected.bytes:
            return f"has {found.st_size} bytes where {expected.bytes} were written"
        same = digest_file(path) == expected.sha256
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if same else "is not as it was written"


def together(files: Mapping[str, FileDigest]) -> str:
    """One digest of files: another as soon as one of them has another name or content."""
    content = {name: one.sha256 for name, one in files.items()}
    return digest(content)
