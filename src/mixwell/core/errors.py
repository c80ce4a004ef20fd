"""Errors that a user can mend, in one line: what came, what was expected, what to do."""

from __future__ import annotations

import difflib
import errno
import functools
import reprlib
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class MixwellError(ValueError):
    """Something the user handed in is wrong. The message is one line; the command line shows it without a trace.

    A name in it may come from anywhere: what would break the line, or steer a terminal, is spelt out, and of what is
    too long for a line the middle is left out.
    """

    def __init__(self, message: str = "") -> None:
        line = on_one_line(message)
        if len(line) > LONGEST:
            line = f"{line[:LONGEST - _END]} ... {line[-_END:]}"
        super().__init__(line)


LONGEST, _END = 1400, 400  # characters of a message, and of those at its end: they say what to do


def on_one_line(text: str) -> str:
    """The text with what would break a line, or steer a terminal, spelt out."""
    return "".join(map(_spelt, text))


def _spelt(letter: str) -> str:
    unseen = unicodedata.category(letter) in _UNSEEN
    return ascii(letter)[1:-1] if unseen else letter


_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, directions of writing, half characters, ends of lines


class TrainingError(MixwellError):
    """A run cannot go on (a loss that is not a number, say); what was finished before stays on disk."""


def suggest(name: str, options: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the nearest option, or `""` where none is near."""
    near = nearest(name, options)
    return f" Did you mean {near!r}?" if near else ""


def nearest(name: str, options: Iterable[str]) -> str:
    """The option meant by a name that is none: by what it means (`meanings.txt`), else by spelling; "" if none is."""
    known = list(options)
    written = name.lower().replace("-", "_")
    lines = [line for line in _meanings() if difflib.get_close_matches(written, line, n=1, cutoff=0.8)]
    lines.sort(key=lambda line: written not in line)  # the word itself before words that are spelt alike
    words = [word for line in lines for word in line]
    words += difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return next((word for word in words if word in known and word != name), "")


@functools.cache
def _meanings() -> list[list[str]]:
    text = Path(__file__).with_name("meanings.txt").read_text(encoding="utf-8")
    lines = text.splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120


def shown(value: Any) -> str:
    """A value that came from outside as it is put into a message: on one line, of bounded length and depth."""
    return _SHORT.repr(value)


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO)


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn a full disk, a limit or a refused write on `path` into one clear line."""
    try:
        yield
    except OSError as error:
        place = error.filename or path
        if error.errno in _NO_SPACE:
            raise MixwellError(
                f"no space left on the disk while writing {path}; nothing half-written was kept. "
                "Free some space or choose another folder, then run the same command again."
            ) from error
        if error.errno == errno.EFBIG:
            raise MixwellError(f"cannot write {path}: it is larger than a file may be here (`ulimit -f`, or the file "
                               "system's own limit); nothing half-written was kept.") from error
        if error.errno in _REFUSED:
            raise MixwellError(f"cannot write {path}: {error.strerror}. Choose a folder you may write to.") from error
        if error.errno in _IN_THE_WAY:
            raise MixwellError(f"cannot write {path}: {place}: {error.strerror}. Choose another place.") from error
        raise
