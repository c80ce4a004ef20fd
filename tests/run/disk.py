"""A disk that forgets: what a crash would leave after each step of what a program wrote.

The steps are the system calls that give and take names and that ask for something to be kept. After a crash at a step
a file holds what it held when it was last synced, or nothing; and the names are those of now (a journal keeps their
order) or, at worst, those that every folder had when it was last synced.
"""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

STEPS = ("mkdir", "replace", "rename", "unlink", "rmdir", "fsync", "chmod")


class Disk:
    """Remembers what was made to last below `root`, and after each step what a crash would leave."""

    def __init__(self, root):
        self.root = Path(root)
        self.kept = {}  # inode -> content when it was last synced
        self.folders = set()  # inodes of folders
        self.names = {}  # inode of a folder -> its names (name -> inode) when it was last synced
        self.live = set()  # inodes that were there after the last step: a number may come back as something else
        self.crashes = []  # (what was done, names of now, synced names)
        self._look_at_all()
        self.live = {p.stat().st_ino for p in self.root.rglob("*")}
        self.folders = {p.stat().st_ino for p in self.root.rglob("*") if p.is_dir()}

    def _look_at_all(self):
        for place in [self.root, *self.root.rglob("*")]:
            self._sync(place)

    def _sync(self, place):
        number = place.stat().st_ino
        self._forget(number)
        if place.is_dir():
            self.names[number] = {p.name: p.stat().st_ino for p in place.iterdir()}
        elif place.is_file():
            self.kept[number] = place.read_bytes()

    def after(self, step, path):
        """A step was taken."""
        if step == "fsync":
            self._sync(path)
        here = {p.stat().st_ino for p in self.root.rglob("*")}
        for number in here - self.live:
            if path.exists() and not (step == "fsync" and path.stat().st_ino == number):
                self._forget(number)
        self.live = here
        now = {str(p.relative_to(self.root)): p.stat().st_ino for p in sorted(self.root.rglob("*"))}
        self.folders = {number for name, number in now.items() if (self.root / name).is_dir()}
        folders = {name for name in now if (self.root / name).is_dir()}
        content = {name: None if name in folders else self.kept.get(number, b"") for name, number in now.items()}
        if not self.crashes or self.crashes[-1][1] != content or step == "fsync":
            self.crashes.append((f"{step} {path.name}", content, self._synced()))

    def _forget(self, number):
        self.kept.pop(number, None)
        self.names.pop(number, None)

    def _synced(self):
        found = {}

        def walk(number, below):
            for name, inside in self.names.get(number, {}).items():
                place = f"{below}{name}"
                folder = inside in self.names or inside in self.folders
                found[place] = None if folder else self.kept.get(inside, b"")
                if folder:
                    walk(inside, f"{place}/")

        walk(self.root.stat().st_ino, "")
        return found

    @contextmanager
    def watching(self, monkeypatch):
        """Within it every step of this process is noted."""
        with monkeypatch.context() as patched:
            for step in STEPS:
                patched.setattr(os, step, self._noted(step, getattr(os, step)))
            patched.setattr("mixwell.core.disk._exchange", self._noted("exchange", self._exchange()))
            yield self

    def _exchange(self):
        from mixwell.core import disk

        return disk._exchange

    def _noted(self, step, real):
        def noted(first, *rest, **options):
            place = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else first
            done = real(first, *rest, **options)
            path = Path(os.path.abspath(place)) if not options.get("dir_fd") else self.root
            if path == self.root or self.root in path.parents:
                self.after(step, path)
            return done

        return noted


ENDED = 2**31 - 1  # no process has this number


def build(content, folder):
    """A folder with this content, in the place of what was there; who left scratch files in it has ended."""
    content = {name.replace(f"-{os.getpid()}-", f"-{ENDED}-"): data for name, data in content.items()}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in content.items():
        if data is None:
            (folder / name).mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        if data is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
