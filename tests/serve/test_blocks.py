"""The pool of blocks against a model of it: who holds what, and that nothing is lost, shared or forgotten wrongly."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mixwell.serve.blocks import BlockPool, block_names

COUNT = 6


class Pool(RuleBasedStateMachine):
    """Holders with lists of blocks, and the content that each named block was given."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(COUNT, 2)
        self.holders = []
        self.content = {}  # block -> the name that it was given when it was complete
        self.fresh = 0

    @rule(count=st.integers(1, 3))
    def take(self, count):
        if self.pool.available < count:
            count = self.pool.available
            self.take_all(count)
            with pytest.raises(LookupError):
                self.pool.take()
        else:
            self.take_all(count)

    def take_all(self, count):
        taken = []
        for _ in range(count):
            block = self.pool.take(taken[-1] if taken else None)
            assert not any(block in blocks for blocks in self.holders)
            taken.append(block)
            self.content.pop(block, None)
        self.holders.append(taken)

    @rule(which=st.integers(0, 5))
    def complete(self, which):
        """The first holder's blocks get names that no other block has."""
        if self.holders:
            for block in self.holders[which % len(self.holders)]:
                if block not in self.content:
                    self.fresh += 1
                    self.content[block] = b"%d" % self.fresh
                    self.pool.name(block, self.content[block])

    @rule(which=st.integers(0, 5))
    def release(self, which):
        if self.holders:
            self.pool.release(self.holders.pop(which % len(self.holders)))

    @rule(which=st.integers(0, 20))
    def share(self, which):
        """Whoever finds a name gets the block that was given it, however long nobody used it."""
        if self.content:
            block, name = sorted(self.content.items())[which % len(self.content)]
            found = self.pool.find([name])
            assert found in ([block], [])
            if found:
                self.pool.share(block)
                self.holders.append([block])

    @invariant()
    def accounts_agree(self):
        self.pool.check()
        held = {block for blocks in self.holders for block in blocks}
        assert self.pool.used == len(held)
        for block in held & self.content.keys():  # nothing that someone uses is forgotten
            assert self.pool.find([self.content[block]]) == [block]


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True, database=None)


def test_the_longest_unused_is_forgotten_first():
    pool = BlockPool(3, 1)
    blocks = [pool.take() for _ in range(3)]
    for block in blocks:
        pool.name(block, b"%d" % block)
    pool.release([blocks[1]])
    pool.release([blocks[0], blocks[2]])
    assert pool.take() == blocks[1]
    assert pool.find([b"%d" % blocks[0]]) == [blocks[0]]
    assert pool.take() == blocks[2]  # the end of a row before its beginning


def test_a_block_behind_another_is_preferred_and_shared_ones_come_back_once():
    pool = BlockPool(8, 1)
    first = pool.take()
    second = pool.take(first)
    assert second == first + 1
    pool.name(first, b"a")
    pool.share(first)
    pool.release([first])
    assert pool.used == 2
    pool.release([first, second])
    assert pool.used == 0 and pool.available == 8
    with pytest.raises(ValueError, match="at least one of each"):
        BlockPool(0, 4)


def test_names_tell_apart_what_stands_before():
    ids = list(range(9))
    names = block_names(ids, 3)
    assert len(names) == 3 and len(block_names(ids[:8], 3)) == 2
    assert block_names([7, *ids[1:]], 3)[1:] != names[1:]
    assert len(set(block_names([0, 1, 2, 0, 1, 2], 3))) == 2
    assert block_names([1, 12, 3], 3) != block_names([11, 2, 3], 3)
    assert block_names(ids, 3, "fewer experts")[0] != names[0]
    assert block_names(ids, 3, known=names[:1]) == names
