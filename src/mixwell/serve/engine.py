"""The engine: rows come and go at any time, and each step reads a bounded number of ids of many of them together.

A row's answer is the same whoever else is there, up to the rounding of sums, which hangs on how many rows a product
has. The engine knows no clocks, threads or sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mixwell.adapters.many import Many
from mixwell.core.errors import MixwellError
from mixwell.lm.model import LanguageModel
from mixwell.serve import jacobi, lookup
from mixwell.serve.blocks import BlockPool
from mixwell.serve.branching import Branching
from mixwell.serve.choose import choose, likelihoods
from mixwell.serve.kept import Keep, KeptRows, keep_of
from mixwell.serve.loads import Loads
from mixwell.serve.ordering import Order
from mixwell.serve.packing import blocks_within, mixes_tokens, side_by_side
from mixwell.serve.paged import PagedRows, Piece, Read, SingleRows, Width, widths
from mixwell.serve.request import Brancher, Drafter, Event, Row, Token, check_ids
from mixwell.serve.scheduler import Scheduler, Turn
from mixwell.serve.smaller import Smaller, check_smaller
from mixwell.serve.store import BITS
from mixwell.serve.tree_drafts import NONE

DRAFTERS: dict[str, Callable[[], Drafter | Brancher]] = {"jacobi": lambda: jacobi.Jacobi(jacobi.Config()),
                                                         "lookup": lambda: lookup.Lookup(lookup.Config()),
                                                         "tree": Branching}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much an engine takes on."""

    context: int | None = None  # positions of a row at most; default the model's own, which it may not exceed
    step_tokens: int = 256  # ids read in a step at most
    max_rows: int = 32  # rows answered at once, at most step_tokens
    block: int = 16  # positions of a block of the cache
    draft: str | None = None  # what guesses next tokens: "jacobi", "lookup" or "tree"; answers are the same
    shortest_first: bool = False  # let rows in by how short their answers will be, learnt from the answers so far
    cache_bits: int | None = None  # of each number of keys and values, 8 or 4; None: as they are
    keep: str | None = None  # POLICY:TOKENS, see `mixwell.serve.kept`; None: all positions of a row stay
    cache_bytes: int | None = None  # of keys and values; default a quarter of free memory, no more than max_rows fill


class Engine:
    """Continues rows of ids with a model, many at a time."""

    def __init__(self, model: LanguageModel, limits: Limits = Limits(), adapters: Many | None = None,
                 smaller: LanguageModel | None = None) -> None:
        """adapters: beside the model, which rows choose from. smaller: a model that drafts for this one."""
        if model.tokenizer is None:
            raise MixwellError("the model has no tokenizer; expected a folder with tokenizer.json.")
        self.model, self.tokenizer = model.eval(), model.tokenizer
        most = model.config.max_positions
        self.context = min(limits.context or most, most)
        self.adapters = adapters
        self.packed = side_by_side(model.config) and not mixes_tokens(model)
        kept = widths(model) if self.packed else []
        _check_cache_bits(limits.cache_bits, self.packed)
        self.keep = _keeping(limits, smaller, self.packed)
        self.position_bytes = sum(width.size_bytes(limits.cache_bits) for width in kept)
        count = self._blocks(limits)
        self.pool = BlockPool(count, limits.block)
        self.rows = self._rows(kept, limits.cache_bits)
        self.order = Order() if limits.shortest_first else None
        self.scheduler = Scheduler(self.pool, limits.step_tokens, limits.max_rows, self.packed, self.order, self.keep)
        self.loads = Loads(len(model.layers))
        self.draft = _drafting(model, limits.draft, smaller, self.packed)
        self.steps = self.read_tokens = self.written_tokens = self.drafted = self.held = 0
        self._count = 0

    def _blocks(self, limits: Limits) -> int:
        """Blocks of the cache: enough for all rows, or what memory holds; a whole context at least."""
        longest = self.context
        if self.keep is not None:
            longest = self.keep.positions(longest, longest, 0)
        one = -(-longest // limits.block)
        most = one * limits.max_rows
        count = blocks_within(limits.cache_bytes, self.position_bytes * limits.block, most)
        if count < one:
            block_bytes = self.position_bytes * limits.block
            raise MixwellError(f"a row of {longest} tokens needs {one * block_bytes / 2**20:.0f} MiB of cache, "
                               f"{count * block_bytes / 2**20:.0f} are there; give it more, or a shorter context.")
        return count

    def _rows(self, kept: list[Width], bits: int | None) -> PagedRows | SingleRows:
        if self.keep is not None:
            return KeptRows(self.model, self.keep, self.adapters)
        if self.packed:
            return PagedRows(self.model, self.pool.count, self.pool.size, kept, self.adapters, bits)
        return SingleRows(self.model, self.adapters)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    def check(self, row: Row) -> None:
        """Raise `MixwellError` for a row without ids, with ids that the model lacks, or longer than the context."""
        if not row.prompt:
            raise MixwellError("the prompt is empty; expected at least one token.")
        total = len(row.prompt) + row.options.max_tokens
        if total > self.context:
            raise MixwellError(f"{len(row.prompt)} tokens of prompt and {row.options.max_tokens} of answer are more "
                               f"than the context of {self.context}; shorten one of them.")
        check_ids(row.prompt, self.model.config.vocab_size)

    def submit(self, row: Row) -> None:
        """Take on a row that `check` lets pass."""
        self.check(row)
        row.number = self._count
        self._count += 1
        if self.draft is not None:
            row.drafter = self.draft()
        self.scheduler.add(row)

    def cancel(self, row: Row) -> None:
        """Forget a row and give its blocks back; one that is over already stays as it is."""
        if not row.finished:
            self._over(row)

    def _over(self, row: Row) -> None:
        row.finished = True
        self.scheduler.release(row)
        self.rows.forget(row.number)

    def _ended(self, row: Row) -> None:
        """Let go of a row that ended by itself; its length is what an order learns from."""
        self._over(row)
        if self.order is not None:
            self.order.learn(row)

    def fail(self, reason: str) -> list[Event]:
        """End all rows with an error."""
        rows = [*self.scheduler.running, *self.scheduler.waiting]
        for row in rows:
            self._over(row)
        return [Event(row, finish="error", error=reason) for row in rows]

    def step(self) -> list[Event]:
        """Read a bounded number of ids; returns what is new of the rows."""
        turns = self.scheduler.plan()
        for row in self.scheduler.sent_back:
            self.rows.forget(row.number)
        if not turns:
            return []
        pieces = [_piece(turn) for turn in turns]
        found = self.rows.read(pieces)
        self.steps += 1
        self._count_experts(turns, found)
        events: list[Event] = []
        for turn, piece, read in zip(turns, pieces, found):
            self.scheduler.computed(turn.row, turn.count)
            self.read_tokens += turn.count
            events += self._after(turn, piece, read)
        return events

    def _count_experts(self, turns: Sequence[Turn], found: Sequence[Read]) -> None:
        """Count what a step's pieces were given, those of one label at once: rows are many, labels few."""
        by_label: dict[str, list[list[Tensor | None]]] = {}
        for turn, read in zip(turns, found):
            label = turn.row.options.label
            by_label.setdefault(label, []).append(read.experts)
        for label, pieces in by_label.items():
            self.loads.add(label, *pieces)

    def _after(self, turn: Turn, piece: Piece, read: Read) -> Iterator[Event]:
        """What a row has more after one of its pieces was read."""
        row = turn.row
        if row.options.prompt_logprobs and not row.said:
            row.told += _prompt_tokens(row, piece, read.logits_NV)
        if row.pooled is not None:
            row.pooled.add(read.states_ND)
        if row.left:
            return
        if row.pooled is not None:
            self._over(row)
            yield Event(row, vector=row.pooled.vector(), finish="stop")
            return
        prompt = () if row.said else tuple(row.told)
        if row.options.max_tokens == 0:
            self._over(row)
            yield Event(row, prompt=prompt, finish="length")
            return
        try:
            for event in self._verified(turn, read):
                yield replace(event, prompt=prompt)
        except MixwellError as error:
            self._over(row)
            yield Event(row, finish="error", error=str(error))

    def _verified(self, turn: Turn, read: Read) -> Iterator[Event]:
        """The row's next id, and those behind it as long as the guesses were what is drawn."""
        row, tree = turn.row, turn.drafts
        count = len(tree.tokens)
        self.drafted += count
        children = {(parent, token): node for node, (token, parent) in enumerate(zip(*tree))}
        node: int | None = NONE
        path: list[int] = []
        while node is not None:
            event = self._next(row, read, node - count)
            yield event
            if event.finish:
                return
            node = children.get((node, row.ids[-1]))
            if node is not None:
                path.append(node)
                self.held += 1
        self.rows.settle(row.number, path)
        self.scheduler.computed(row, len(path))
        if row.drafter is not None:
            passed = read.logits_NV[-count - 1 :]
            row.drafter.learn(passed.argmax(-1).tolist(), len(path) + 1)

    def _next(self, row: Row, read: Read, place: int) -> Event:
        """The row's next id by the logits at a place, and whether it is the last."""
        options = row.options
        logits_V = read.logits_NV[place]
        number = choose(logits_V, row)
        if row.constraint is not None:
            row.constraint.take(number)
        token = _token(row, number, logits_V, read.experts, place)
        self.written_tokens += 1
        if number in options.stop_ids:
            text = row.text.close()
            self._ended(row)
            return Event(row, text, finish="stop", end=token)
        row.ids.append(number)
        text = row.text.push(number)
        finish = "stop" if row.text.stopped else None
        if finish is None and row.constraint is not None and row.constraint.over:
            text += row.text.close()
            finish = "stop"
        if finish is None and len(row.said) >= options.max_tokens:
            text += row.text.close()
            finish = "stop" if row.text.stopped else "length"
        if finish == "stop":
            self._ended(row)
        elif finish:
            self._over(row)
        return Event(row, text, (token,), finish=finish)

    def facts(self) -> dict[str, Any]:
        """The engine's state in numbers."""
        pool, scheduler = self.pool, self.scheduler
        block_bytes = self.position_bytes * pool.size
        return {"running": len(scheduler.running), "waiting": len(scheduler.waiting), "blocks": pool.count,
                "blocks_used": pool.used, "cache_bytes": pool.count * block_bytes,
                "cache_used_bytes": pool.used * block_bytes, "steps": self.steps, "prompt_tokens": self.read_tokens,
                "generated_tokens": self.written_tokens, "drafted_tokens": self.drafted,
                "drafted_held": self.held, "dropped_tokens": self.scheduler.dropped}


def _check_cache_bits(bits: int | None, packed: bool) -> None:
    if bits is None:
        return
    if bits not in BITS:
        raise MixwellError(f"cache_bits is {bits}; expected {' or '.join(map(str, BITS))}.")
    if not packed:
        raise MixwellError("this model's layers keep more than keys and values; leave cache_bits out.")


def _keeping(limits: Limits, smaller: LanguageModel | None, packed: bool) -> Keep | None:
    """Which positions of rows stay."""
    if limits.keep is None:
        return None
    if limits.draft is not None or smaller is not None:
        raise MixwellError(f"keep is {limits.keep!r}, and drafts came, which need a cache that can go back; leave one "
                           "out.")
    if limits.cache_bits is not None:
        raise MixwellError(f"keep is {limits.keep!r}, and cache_bits came; leave one out.")
    if not packed:
        raise MixwellError("this model's layers keep more than keys and values; leave keep out.")
    return keep_of(limits.keep)


def _piece(turn: Turn) -> Piece:
    """The ids that a row has read in its turn."""
    row = turn.row
    end = row.computed + turn.count
    felt = row.pooled is not None
    all_asked = felt or (row.options.prompt_logprobs and not row.said)
    ids = [*row.ids[row.computed : end], *turn.drafts.tokens]
    asked = turn.count if all_asked else 1 + len(turn.drafts.tokens)
    return Piece(ids, row.computed, row.blocks, asked, row.number, row.options.adapter, felt, len(row.prompt),
                 row.options.max_tokens, turn.drafts)


def _drafting(model: LanguageModel, name: str | None, smaller: LanguageModel | None,
              packed: bool) -> Callable[[], Drafter | Brancher] | None:
    """What makes a new row's drafter."""
    if name is None and smaller is None:
        return None
    if name is not None and name not in DRAFTERS:
        raise MixwellError(f"draft is {name!r}; expected {' or '.join(DRAFTERS)}.")
    if name is not None and smaller is not None:
        raise MixwellError(f"draft is {name!r}, and a smaller model came to draft; leave one out.")
    if not packed:
        raise MixwellError("drafts need a cache that can go back, which this model's layers do not keep; leave draft "
                           "out.")
    if smaller is None:
        return DRAFTERS[str(name)]
    check_smaller(model, smaller)
    return lambda: Smaller(smaller.eval())


def _prompt_tokens(row: Row, piece: Piece, logits_NV: Tensor) -> Iterator[Token]:
    """What is told of the prompt's ids: each by what was read before it."""
    if piece.start == 0:
        yield Token(row.prompt[0])
    following = row.prompt[piece.start + 1 : piece.end + 1]
    if following:
        found = likelihoods(logits_NV[: len(following)], following, row.options.logprobs or 0)
        for number, (logprob, top) in zip(following, found):
            yield Token(number, logprob, top)


def _token(row: Row, number: int, logits_V: Tensor, experts: Sequence[Tensor | None], place: int) -> Token:
    """The id with what was asked about it."""
    options = row.options
    found = None
    if options.experts:
        found = tuple(_at(layer, place) for layer in experts)
    if options.logprobs is None:
        return Token(number, experts=found)
    ((logprob, top),) = likelihoods(logits_V.unsqueeze(0), [number], options.logprobs)
    return Token(number, logprob, top, found)


def _at(experts_TK: Tensor | None, place: int) -> tuple[int, ...] | None:
    """Experts of a piece's token."""
    if experts_TK is None:
        return None
    numbers = experts_TK[place].tolist()
    return tuple(number for number in numbers if number >= 0)
