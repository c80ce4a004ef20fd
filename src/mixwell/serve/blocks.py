"""Which block of the cache holds what: counted users, shared beginnings, and what may be forgotten first.

A block holds `size` positions. It is free, in use by one request or several, or idle: used by none, kept because its
content has a name by which a later request may find it. Free and idle blocks can be taken; idle ones lose their names
as they are, the longest unused first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

Name = bytes  # digest of all tokens up to the end of a block, and of what else decides its content


class BlockPool:
    """The blocks of a cache and who uses them. Every block is free, idle or used, always."""

    def __init__(self, count: int, size: int) -> None:
        if count < 1 or size < 1:
            raise ValueError(f"{count} blocks of {size} positions; expected at least one of each")
        self.count, self.size = count, size
        self._free = set(range(count))
        self._idle: OrderedDict[int, None] = OrderedDict()  # the longest unused first
        self._users = [0] * count
        self._names: dict[int, Name] = {}
        self._named: dict[Name, int] = {}

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that a request holds."""
        return self.count - self.available

    def blocks_for(self, positions: int) -> int:
        """Blocks that so many positions take."""
        return -(-positions // self.size)

    def take(self, after: int | None = None) -> int:
        """A block for one user, the one behind `after` where it is free: runs of blocks need no gathering.

        Raises `LookupError` where none is available.
        """
        if not self.available:
            raise LookupError("no block is available")
        block = self._next(after)
        self._users[block] = 1
        return block

    def _next(self, after: int | None) -> int:
        wished = -1 if after is None else after + 1
        if wished in self._free:
            self._free.remove(wished)
            return wished
        if self._free:
            return self._free.pop()
        block, _ = self._idle.popitem(last=False)
        self._forget(block)
        return block

    def _forget(self, block: int) -> None:
        name = self._names.pop(block)
        del self._named[name]

    def share(self, block: int) -> None:
        """One user more of a block that has users or a name."""
        self._idle.pop(block, None)
        self._users[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One user less of each of the blocks; the last ones of a row are forgotten before those in front of them."""
        for block in reversed(list(blocks)):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._names:
                self._idle[block] = None
            else:
                self._free.add(block)

    def name(self, block: int, name: Name) -> None:
        """Let a block whose content is complete be found by its name; where another has it already, nothing happens."""
        if name not in self._named and block not in self._names:
            self._names[block] = name
            self._named[name] = block

    def find(self, names: Sequence[Name]) -> list[int]:
        """The blocks of the longest beginning of `names` that is kept."""
        found: list[int] = []
        for name in names:
            block = self._named.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def check(self) -> None:
        """Raise `AssertionError` where the accounts do not agree."""
        used = {block for block, users in enumerate(self._users) if users > 0}
        idle = set(self._idle)
        assert min(self._users) >= 0
        assert self._free | idle | used == set(range(self.count))
        assert len(self._free) + len(idle) + len(used) == self.count
        assert idle <= set(self._names)
        assert not self._free & set(self._names)
        assert {name: block for block, name in self._names.items()} == self._named


def block_names(ids: Sequence[int], size: int, variant: str = "", known: Sequence[Name] = ()) -> list[Name]:
    """The names of the full blocks of a row of ids; `known` are those of its first blocks, worked out before.

    variant: what else decides the content, such as another number of experts.
    """
    names = list(known)
    for end in range((len(names) + 1) * size, len(ids) + 1, size):
        before = names[-1] if names else variant.encode()
        own = ",".join(map(str, ids[end - size : end]))
        digest = hashlib.blake2b(before, digest_size=16)
        digest.update(b"/" + own.encode())
        names.append(digest.digest())
    return names
