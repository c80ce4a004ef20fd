"""Whether a file or a folder can be written, checked before the work and not after it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mixwell.core.errors import MixwellError


def check_folder(path: str | Path, own: Collection[str] = (), foreign: Collection[str] = ()) -> None:
    """Raise `MixwellError` unless a folder can be written at `path`; nothing is left behind.

    It must be new, or empty but for hidden entries, or hold one of the entries `own` and none of `foreign`.
    """
    path = Path(path)
    with refusals(path):
        if path.exists() and not path.is_dir():
            raise MixwellError(f"{path} is there and is no folder; name another with --out.")
        inside = _visible(path) if path.is_dir() else set()
        strange = inside & {*foreign}
        if inside and (strange or inside.isdisjoint(own)):
            example = min(strange or inside)
            raise MixwellError(f"{path} is there already and holds {example!r}; name a new folder with --out, or "
                               "remove it.")
        _try_to_write(path / "x" if path.is_dir() else path)


def _visible(folder: Path) -> set[str]:
    names = {entry.name for entry in folder.iterdir()}
    return {name for name in names if not name.startswith(".")}


def check_file(path: str | Path) -> None:
    """Raise `MixwellError` unless a file can be written at `path`, new or in another's place; leaves nothing behind."""
    path = Path(path)
    with refusals(path):
        if path.is_dir():
            raise MixwellError(f"{path} is a folder; expected a file to write. Name another place with --out.")
        _try_to_write(path)


@contextmanager
def refusals(path: str | Path) -> Iterator[None]:
    """What the system refuses to write raises `MixwellError`, one line."""
    try:
        yield
    except OSError as error:
        in_the_way = isinstance(error, (FileExistsError, NotADirectoryError))
        why = "a file is where a folder is needed" if in_the_way else error.strerror or error
        raise MixwellError(f"cannot write {path} ({why}); name another place with --out.") from error


def _try_to_write(path: Path) -> None:
    """Create a folder beside `path`, parents and all, and take away again what was created."""
    created = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    finally:
        for parent in created:
            with suppress(OSError):
                parent.rmdir()
