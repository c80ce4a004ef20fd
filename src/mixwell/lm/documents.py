"""A user's text as documents: files, folders and globs of plain text and of rows (JSON lines, CSV, Parquet, Arrow).

A file of plain text is a document; a row of a table is one, its text standing in one field.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from mixwell.core.errors import MixwellError
from mixwell.core.files import digest
from mixwell.lm import rows, saved_datasets
from mixwell.lm.conversation import Conversation
from mixwell.lm.rows import NoText, Wanted

NAMED = 3  # files that are passed over and told by name, for each reason
ROWS = "rows without text"
UNANSWERED = "conversations without an answer"


@dataclass(frozen=True)
class Document:
    """A text and where it came from (relative to its domain; `file:row` for a row).

    `whole` is the identity of the document that `text` is a part of; empty where it is all of it. `messages` is the
    conversation (`Conversation.to_json`) whose messages `text` holds; empty for plain text.
    """

    path: str
    text: str
    whole: str = ""
    messages: str = ""

    @cached_property
    def identity(self) -> str:
        """Digest of the whole text: the same for copies, and for a document and its parts."""
        content = self.messages or self.text
        return self.whole or digest(content.encode())

    @cached_property
    def size(self) -> int:
        """UTF-8 bytes of the text."""
        data = self.text if self.text.isascii() else self.text.encode()
        return len(data)


def size_bytes(documents: Iterable[Document]) -> int:
    """UTF-8 bytes of all the texts."""
    return sum(document.size for document in documents)


def read_domain(spec: str | Path, text_field: str | None = None) -> list[Document]:
    """All documents of a domain; see `Reader`."""
    return list(Reader(spec, text_field))


class Reader:
    """The documents of a domain, one after the other: of a file, a folder (all files below it), or a glob (`**` goes
    deep), by sorted paths. Once gone through, `notices` tells what was passed over.

    Hidden files and empty documents are left out, a file that several links lead to is read once. Among several files
    those that hold no text (binaries, unknown encodings, tables without a text field) are passed over and counted; a
    file named alone is an error, and so is a domain without text. `text_field` names the field of rows that holds the
    text or the messages; None takes `messages`, `conversations`, then `text`, `content`, `document`, `body`, then the
    only field that holds text. Of a folder that `datasets` saved the training split is read. Raises `MixwellError`.
    """

    def __init__(self, spec: str | Path, text_field: str | None = None) -> None:
        self.spec = spec
        wanted = Path(spec).expanduser()
        self.root, self.paths = _paths(wanted)
        self.beside = saved_datasets.other_splits(wanted)
        self.passed_over: dict[str, list[str]] = {}  # reason -> files
        self.dropped: dict[str, int] = {}  # reason -> rows
        self.read = 0  # documents
        self.wanted = Wanted(text_field)

    def __iter__(self) -> Iterator[Document]:
        self.passed_over, self.dropped, self.read = {}, {}, 0
        self.wanted = Wanted(self.wanted.field)
        for path in self.paths:
            for document in self._documents(path):
                self.read += 1
                yield document
        if not self.read:
            reasons = "; ".join(self.notices) or "all are empty"
            raise MixwellError(f"{self.spec}: the {len(self.paths)} files found hold no text ({reasons}); expected "
                               "UTF-8 text.")

    @property
    def notices(self) -> list[str]:
        """What was passed over, in sentences."""
        lines = []
        for reason, names in self.passed_over.items():
            share = f"{len(names)} of {len(self.paths)}"
            lines.append(f"{share} files passed over ({reason}): {_listed(names)}")
        lines += [f"{count} {reason} passed over" for reason, count in self.dropped.items()]
        if self.wanted.guessed:
            lines.append(f"the text is taken from the only field that holds some: {', '.join(self.wanted.guessed)}")
        if self.beside:
            lines.append(f"of the data set's splits train alone is read, not {', '.join(self.beside)}")
        return lines

    @property
    def counts(self) -> dict[str, Any]:
        """What was read and what was not, and why, as plain data."""
        files = {reason: len(names) for reason, names in self.passed_over.items()}
        return {"files": len(self.paths), "documents": self.read, "files_passed_over": files,
                "rows_passed_over": dict(self.dropped)}

    def _documents(self, path: Path) -> Iterator[Document]:
        name = path.relative_to(self.root).as_posix()
        begun = False
        try:
            for row, found in rows.texts(path, self.wanted):
                begun = True
                reason = _useless(found)
                if not reason:
                    yield _document(f"{name}:{row}" if row else name, found)
                elif row:
                    self.dropped[reason] = self.dropped.get(reason, 0) + 1
        except NoText as error:
            if begun or len(self.paths) == 1:
                raise
            self.passed_over.setdefault(error.reason, []).append(name)
        except OSError as error:
            raise MixwellError(f"cannot read {path}: {error.strerror or error}. Make it readable or leave it "
                               "out.") from error


def _useless(found: str | Conversation) -> str:
    """Why what was found is no document; nothing where it is one."""
    text = found if isinstance(found, str) else found.text
    if not text.strip():
        return ROWS
    return UNANSWERED if isinstance(found, Conversation) and not found.answers else ""


def _document(path: str, found: str | Conversation) -> Document:
    if isinstance(found, str):
        return Document(path, found)
    return Document(path, found.text, messages=found.to_json())


def _listed(names: Sequence[str]) -> str:
    lines = list(names[:NAMED])
    more = len(names) - len(lines)
    if more:
        lines.append(f"and {more} more")
    return ", ".join(lines)


def _paths(spec: Path) -> tuple[Path, list[Path]]:
    """The files that `spec` means, and the folder their names are told from."""
    if spec.is_file():
        return spec.parent, [spec]
    if spec.is_dir():
        root, found = spec, _below(spec)
    elif glob.has_magic(str(spec)):
        root, found = _globbed(spec)
    else:
        raise MixwellError(f"{spec} is not there; expected a file, a folder or a glob of text files.")
    seen = [path for path in found if path.is_file() and not _hidden(path, root)]
    files = saved_datasets.without_bookkeeping(seen)
    if not files:
        raise MixwellError(f"{spec} holds no files; expected UTF-8 text files.")
    last_first = sorted(files, reverse=True)  # so that of several links to a file the first by name is kept
    once = {path.resolve(): path for path in last_first}
    return root, sorted(once.values())


def _globbed(spec: Path) -> tuple[Path, Iterator[Path]]:
    """The folder up to the first step with a wildcard, and the paths that fit."""
    steps = spec.parts
    plain = next(i for i, step in enumerate(steps) if glob.has_magic(step))
    root = Path(*steps[:plain])
    if "**" in steps:
        return root, _matching(root, steps[plain:])
    return root, map(Path, glob.iglob(str(spec)))


def _hidden(path: Path, root: Path) -> bool:
    steps = path.relative_to(root).parts
    return any(step.startswith(".") for step in steps)


def _below(root: Path) -> Iterator[Path]:
    """Files below a folder; links to folders are followed, each folder is entered once, so that a loop ends."""
    seen = set()
    for folder, below, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(folder, name) for name in files)


def _matching(root: Path, pattern: Sequence[str]) -> Iterator[Path]:
    for path in _below(root):
        steps = path.relative_to(root).parts
        if _matches(steps, pattern):
            yield path


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a pattern, step by step; `**` stands for any number of steps."""
    if not pattern:
        return not parts
    first, *rest = pattern
    if first == "**":
        starts = range(len(parts) + 1)
        return not rest or any(_matches(parts[start:], rest) for start in starts)
    if not parts or not fnmatchcase(parts[0], first):
        return False
    return _matches(parts[1:], rest)
