"""Which rows go on in a step: all that are answering, then prompts in pieces, under a budget of tokens.

The steps are those of `mixwell.serve.scheduling.stall_free`, under the memory that there is: rows that answer are never
held up by a long prompt, and prompts fill what the budget has left.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from mixwell.serve.blocks import BlockPool, block_names
from mixwell.serve.branching import chain, depths, first_nodes, no_deeper, nothing
from mixwell.serve.kept import Keep
from mixwell.serve.ordering import Order
from mixwell.serve.request import Row
from mixwell.serve.tree_drafts import Tree


@dataclass(frozen=True)
class Turn:
    """A row and how many of its ids are read in this step."""

    row: Row
    count: int
    drafts: Tree = field(default_factory=nothing)  # guesses of what follows, read beside


class Scheduler:
    """Rows that wait, in the order in which they came, and rows that hold blocks."""

    def __init__(self, pool: BlockPool, step_tokens: int, max_rows: int, pieces: bool = True,
                 order: Order | None = None, keep: Keep | None = None) -> None:
        """step_tokens: ids read in a step at most. pieces: whether a prompt may be read in several steps, and its
        beginning be shared; else it is read at once, however long. order: who is let in next; default who came first.
        keep: which positions stay of a row, whose beginning then is not shared; default all.
        """
        if not 1 <= max_rows <= step_tokens:
            raise ValueError(f"{max_rows} rows at once with {step_tokens} tokens a step; expected one row or more, and "
                             "a token for each of them")
        self.pool, self.step_tokens, self.max_rows, self.pieces = pool, step_tokens, max_rows, pieces
        self.order, self.keep = order, keep
        self.dropped = 0  # positions that rows let go
        self.sent_back: list[Row] = []  # in the last plan: what was read of them is forgotten
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []  # in the order in which they came

    def add(self, row: Row) -> None:
        """Put a row at the end of those that wait."""
        self.waiting.append(row)

    def plan(self) -> list[Turn]:
        """The turns of a step. Rows may lose their blocks for others that came before them; they wait again."""
        self.sent_back = []
        answering = [row for row in self.running if row.left == 1]
        turns = [Turn(row, 1) for row in answering if self._makes_room(row)]
        turns = [turn for turn in turns if turn.row.blocks]  # some had to give theirs to those before them
        budget = self.step_tokens - len(turns)
        for row in list(self.running):
            if budget > 0 and row.left > 1:
                turns.append(self._piece(row, budget))
                budget -= turns[-1].count
        if self.order is not None:
            self.waiting = deque(self.order.sort(self.waiting))
        while budget > 0 and self._admits():
            turns.append(self._piece(self.running[-1], budget))
            budget -= turns[-1].count
        return self._with_drafts(turns, budget)

    def _with_drafts(self, turns: list[Turn], budget: int) -> list[Turn]:
        """The turns, those that answer with guesses as far as the budget and free blocks allow: no row waits for them.
        """
        found = []
        for turn in turns:
            drafts = self._drafts(turn.row, budget)
            budget -= len(drafts.tokens)
            found.append(Turn(turn.row, turn.count, drafts))
        return found

    def _drafts(self, row: Row, most: int) -> Tree:
        """Guesses of what a row says next, `most` at most, for which it has blocks."""
        if most <= 0 or row.drafter is None or not row.said:
            return nothing()
        found = row.drafter.draft(row.ids, len(row.said), row.options.max_tokens)
        tree = found if isinstance(found, Tree) else chain(found)
        guesses = first_nodes(tree, most)
        longest = max(depths(guesses), default=0)
        while self.pool.available and len(row.blocks) < self.pool.blocks_for(len(row.ids) + longest):
            row.blocks.append(self.pool.take(row.blocks[-1]))
        room = len(row.blocks) * self.pool.size - len(row.ids)
        return no_deeper(guesses, room)

    def _piece(self, row: Row, budget: int) -> Turn:
        most = budget if self.pieces else row.left
        count = min(row.left, most)
        if self.keep is not None:
            count = self.keep.piece(len(row.prompt), row.computed, count)
        return Turn(row, count)

    def _wanted(self, row: Row) -> int:
        """Blocks that a row takes once all its ids are read."""
        positions = len(row.ids)
        if self.keep is not None:
            positions = self.keep.positions(len(row.prompt), positions, row.computed)
        return self.pool.blocks_for(positions)

    def _makes_room(self, row: Row) -> bool:
        """Whether the row has a block for its next position; rows that came later may have to give theirs."""
        if not row.blocks:  # it gave its own for a row before it
            return False
        while len(row.blocks) < self._wanted(row):
            if self.pool.available:
                row.blocks.append(self.pool.take(row.blocks[-1]))
                continue
            last = self.running[-1]
            self._sent_back(last)
            if last is row:
                return False
        return True

    def _sent_back(self, row: Row) -> None:
        """Let a row wait again, before all that came after it; what it said stays said and is read anew."""
        self.release(row)
        row.begin_again()
        self.sent_back.append(row)
        self.waiting.appendleft(row)

    def _admits(self) -> bool:
        """Whether the first row that waits could be given blocks for all its ids."""
        if not self.waiting or len(self.running) >= self.max_rows:
            return False
        row = self.waiting[0]
        shared = self._shared(row)
        for block in shared:
            self.pool.share(block)
        wanted = self._wanted(row) - len(shared)
        if wanted > self.pool.available:
            self.pool.release(shared)
            return False
        self.waiting.popleft()
        self._give(row, shared, wanted)
        return True

    def _give(self, row: Row, shared: list[int], wanted: int) -> None:
        """Blocks for a row's ids, the first of which are there already."""
        row.blocks = list(shared)
        for _ in range(wanted):
            last = row.blocks[-1] if row.blocks else None
            row.blocks.append(self.pool.take(last))
        row.named = len(shared)
        row.computed = len(shared) * self.pool.size
        if row.cached is None:  # what a row finds when it comes back was read for it
            row.cached = row.computed
        self.running.append(row)

    def _shared(self, row: Row) -> list[int]:
        """Blocks that hold the row's beginning; the last id is always read, for what it says of the next."""
        if not self.pieces or self.keep is not None or row.options.prompt_logprobs or row.pooled is not None:
            return []
        size = self.pool.size
        row.names = block_names(row.ids, size, row.variant, row.names)
        most = (len(row.ids) - 1) // size
        return self.pool.find(row.names[:most])

    def computed(self, row: Row, count: int) -> None:
        """So many more positions of the row are kept; blocks that are full now can be found by others."""
        row.computed += count
        if self.keep is not None:
            self._let_go(row, self.keep)
            return
        full = row.computed // self.pool.size
        if not self.pieces or full == row.named:
            return
        known = row.names[:full]
        row.names = block_names(row.ids[: full * self.pool.size], self.pool.size, row.variant, known)
        for place in range(row.named, full):
            self.pool.name(row.blocks[place], row.names[place])
        row.named = full

    def _let_go(self, row: Row, keep: Keep) -> None:
        """Take back the blocks of positions that are gone."""
        dropped = keep.dropped(len(row.prompt), row.computed)
        self.dropped += max(0, dropped - row.dropped)
        row.dropped = dropped
        wanted = self._wanted(row)
        gone = row.blocks[wanted:]
        self.pool.release(gone)
        row.blocks = row.blocks[:wanted]

    def release(self, row: Row) -> None:
        """Take a row's blocks back, wherever it stands."""
        if row in self.running:
            self.running.remove(row)
            self.pool.release(row.blocks)
            row.blocks = []
        elif row in self.waiting:
            self.waiting.remove(row)
