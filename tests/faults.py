"""A file layer that remembers: every call by which a writer changes names or makes bytes last, and what each prefix of
them leaves after the power went.

    with faults.recorded(root) as tape:
        write(root / "model")
    for image in tape.images():
        assert image in (old, new)

An image is what may be found under `root` afterwards: the bytes of each file by its path. After each call there are
several, for a disk may keep the names in a folder or lose them until the folder is synced, each folder by itself, and
may lose or cut the bytes of a file until the file is synced, whatever its name is. One image more is what a killed
process leaves, whose writes all arrive.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from mixwell.core import disk

Image = dict[str, bytes]


@dataclass(eq=False)
class File:
    """Bytes that were made to last; None before that."""

    lasting: bytes | None = None


@dataclass(eq=False)
class Folder:
    """Names as the running system sees them, and as they lasted at the last sync."""

    names: dict[str, File | Folder] = field(default_factory=dict)
    lasting: dict[str, File | Folder] = field(default_factory=dict)


def image_of(root: Path) -> Image:
    """The files that lie under a folder now."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


class Tape:
    """What was called, and what the disk may hold after each call."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[str] = []
        self._top = _lasting(root)
        self._found: list[tuple[str, Image]] = []
        self._keep("nothing")

    def images(self) -> Iterator[Image]:
        """All that may be found, after any prefix of the calls."""
        return (image for _, image in self._found)

    def last(self) -> list[Image]:
        """What may be found after the last call."""
        return [image for call, image in self._found if call == f"{len(self.calls)} {self.calls[-1]}"]

    def create(self, path: Path) -> None:
        self._folder(path.parent).names[path.name] = File()
        self._note(f"create {path.name}")

    def make(self, path: Path) -> None:
        self._folder(path.parent).names[path.name] = Folder()
        self._note(f"make {path.name}")

    def move(self, source: Path, target: Path) -> None:
        node = self._folder(source.parent).names.pop(source.name)
        self._folder(target.parent).names[target.name] = node
        self._note(f"move {source.name} to {target.name}")

    def exchange(self, first: Path, second: Path) -> None:
        one, other = self._folder(first.parent).names, self._folder(second.parent).names
        one[first.name], other[second.name] = other[second.name], one[first.name]
        self._note(f"exchange {first.name} and {second.name}")

    def remove(self, path: Path) -> None:
        self._folder(path.parent).names.pop(path.name, None)
        self._note(f"remove {path.name}")

    def remove_tree(self, path: Path) -> None:
        """Bytes and names of what lies in a removed folder are gone wherever that folder still has a name."""
        node = self._folder(path.parent).names.pop(path.name, None)
        if isinstance(node, Folder):
            node.names, node.lasting = {}, {}
        self._note(f"remove tree {path.name}")

    def sync(self, path: Path) -> None:
        if path.is_dir():
            found = self._folder(path)
            found.lasting = dict(found.names)
        else:  # a file that some library made is heard of here for the first time
            node = self._folder(path.parent).names.setdefault(path.name, File())
            assert isinstance(node, File)
            node.lasting = path.read_bytes()
        self._note(f"sync {path.name}")

    def _folder(self, path: Path) -> Folder:
        node: File | Folder = self._top
        for part in path.relative_to(self.root).parts:
            assert isinstance(node, Folder)
            node = node.names[part]
        assert isinstance(node, Folder)
        return node

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self._keep(f"{len(self.calls)} {call}")

    def _keep(self, after: str) -> None:
        kept = [image_of(self.root)]
        unsynced = [folder for folder in _folders(self._top) if folder.names != folder.lasting]
        for choice in itertools.product((True, False), repeat=len(unsynced)):
            lost = {id(folder) for folder, keeps in zip(unsynced, choice) if not keeps}
            for unwritten in (b"", b"\0\0\0"):
                kept.append(dict(_walk(self._top, "", lost, unwritten)))
        for image in kept:
            if (after, image) not in self._found:
                self._found.append((after, image))


def _lasting(path: Path) -> Folder:
    """What lies on the disk from before; it is there to stay."""
    names: dict[str, File | Folder] = {}
    for entry in path.iterdir():
        names[entry.name] = _lasting(entry) if entry.is_dir() else File(entry.read_bytes())
    return Folder(names, dict(names))


def _folders(folder: Folder) -> Iterator[Folder]:
    yield folder
    for node in {id(n): n for n in (*folder.names.values(), *folder.lasting.values())}.values():
        if isinstance(node, Folder):
            yield from _folders(node)


def _walk(folder: Folder, place: str, lost: set[int], unwritten: bytes) -> Iterator[tuple[str, bytes]]:
    names = folder.lasting if id(folder) in lost else folder.names
    for name, node in names.items():
        if isinstance(node, Folder):
            yield from _walk(node, f"{place}{name}/", lost, unwritten)
        else:
            yield place + name, unwritten if node.lasting is None else node.lasting


@contextmanager
def recorded(root: Path) -> Iterator[Tape]:
    """Remember what is done below `root` during the block."""
    tape = Tape(root)
    usual_open, usual_sync, usual_exchange, usual_tree = os.open, os.fsync, disk._exchange, shutil.rmtree
    inside_tree = False

    def ours(path) -> bool:
        return not inside_tree and isinstance(path, (str, Path)) and Path(path).is_relative_to(root)

    def after(usual, tell):
        def call(path, *others, **options):
            result = usual(path, *others, **options)
            if ours(path):
                tell(*(Path(p) for p in (path, *others) if isinstance(p, (str, Path))))
            return result
        return call

    def open_file(path, flags, *others, **options):
        handle = usual_open(path, flags, *others, **options)
        if ours(path) and flags & os.O_CREAT:
            tape.create(Path(path))
        return handle

    def sync(handle):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        usual_sync(handle)
        if ours(path):
            tape.sync(path)

    def exchange(first, second):
        done = usual_exchange(first, second)
        if done and ours(first):
            tape.exchange(first, second)
        return done

    def remove_tree(path, *others, **options):
        nonlocal inside_tree
        mine, inside_tree = ours(path), True
        try:
            usual_tree(path, *others, **options)
        finally:
            inside_tree = False
        if mine:
            tape.remove_tree(Path(path))

    with mock.patch.multiple(os, open=open_file, fsync=sync, replace=after(os.replace, tape.move),
                             rename=after(os.rename, tape.move), mkdir=after(os.mkdir, tape.make),
                             unlink=after(os.unlink, tape.remove), rmdir=after(os.rmdir, tape.remove)), \
            mock.patch.object(disk, "_exchange", exchange), mock.patch.object(shutil, "rmtree", remove_tree):
        yield tape
