"""Keys and values of many rows in blocks, and a pass over pieces of several rows at once.

The pieces stand side by side as one row of tokens: all products but those of attention read the weights once for all of
them. Attention is asked piece by piece, each over the positions of its own row.

Legend: T tokens of the pass, S positions of a row so far, G key/value heads, P head width, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixwell.adapters.many import NONE, Many
from mixwell.core.routing import Routing
from mixwell.kernels.cache import Attend
from mixwell.lm.cache import Cache
from mixwell.lm.network import Network
from mixwell.serve.branching import depths, nothing, path_to, paths
from mixwell.serve.store import Plain, Rounded, bytes_of
from mixwell.serve.tree_drafts import Tree


@dataclass(frozen=True)
class Piece:
    """New tokens of one row: they stand at `start` and after, the row's positions lie in `blocks`."""

    ids: Sequence[int]
    start: int
    blocks: Sequence[int]
    asked: int = 1  # the last so many of them are asked what follows
    row: int = 0  # number of the row
    adapter: int = NONE  # number of the adapter that the tokens go through
    felt: bool = False  # whether what the head is given is wanted of those asked, in the place of logits
    prompt: int = 0  # ids of its row's prompt
    answer: int = 0  # and of its answer at most
    drafts: Tree = field(default_factory=nothing)  # guesses, the last of the ids

    @property
    def end(self) -> int:
        """Position behind the last one that is no guess."""
        guessed = len(self.drafts.tokens)
        read = len(self.ids) - guessed
        return self.start + read

    @property
    def deepest(self) -> int:
        """Guesses of its longest branch."""
        return max(depths(self.drafts), default=0)

    def positions(self) -> list[int]:
        """Where each of the ids stands in its row."""
        last = self.end - 1
        guessed = [last + depth for depth in depths(self.drafts)]
        read = range(self.start, self.end)
        return [*read, *guessed]


@dataclass(frozen=True)
class Width:
    """What a layer keeps of one position: shapes [G, P] of keys and of values, and their type."""

    keys: tuple[int, int]
    values: tuple[int, int]
    dtype: torch.dtype

    def size_bytes(self, bits: int | None = None) -> int:
        """Bytes of one position, of which each number is kept in so many bits; None: as it is."""
        keys = bytes_of(self.keys, self.dtype, bits)
        values = bytes_of(self.values, self.dtype, bits)
        return keys + values


class _Measure:
    """Stands for a layer's cache in a pass that only tells what would be kept."""

    def attended(self, k_BGTP: Tensor, v_BGTP: Tensor, mask_BT: Tensor | None, attend: Attend) -> Tensor:
        keys, values = ((t.shape[1], t.shape[3]) for t in (k_BGTP, v_BGTP))
        self.width = Width(keys, values, k_BGTP.dtype)
        return attend(slice(None), k_BGTP, v_BGTP, mask_BT)


@torch.inference_mode()
def widths(model: Network) -> list[Width]:
    """What each layer of the model keeps of a position, found by a pass over one token."""
    layers = [_Measure() for _ in model.layers]
    first = torch.zeros(1, 1, dtype=torch.int64)
    cache = Cache(layers)
    model.next_logits(first, cache)
    return [layer.width for layer in layers]


@dataclass(frozen=True, eq=False)
class Read:
    """What a network says to a piece."""

    logits_NV: Tensor  # behind the tokens that were asked, float32; none of a piece that is felt
    experts: list[Tensor | None]  # one a layer: experts of the piece's tokens [T, K], -1 for none
    states_ND: Tensor  # what the head is given of the tokens that were asked


class _Layer:
    """One layer's keys and values [G, slots, P], a slot a position; `spans` says where the pass's pieces lie."""

    def __init__(self, width: Width, slots: int, bits: int | None) -> None:
        self.keys = _store(width.keys, slots, width.dtype, bits)
        self.values = _store(width.values, slots, width.dtype, bits)
        self.spans: list[_Span] = []

    def attended(self, k_BGTP: Tensor, v_BGTP: Tensor, mask_BT: Tensor | None, attend: Attend) -> Tensor:
        """What each piece finds over its own row, side by side; the pieces' keys and values are kept."""
        found = []
        for span in self.spans:
            found += span.attended(self.keys, self.values, k_BGTP, v_BGTP, attend)
        self.last = k_BGTP, v_BGTP
        return torch.cat(found, 2) if len(found) > 1 else found[0]

    def settle(self, span: _Span, nodes: Sequence[int]) -> None:
        """Keep the keys and values of guesses of the last pass that held, behind the row's positions."""
        places = [span.first_guess + node for node in nodes]
        k_1GTP, v_1GTP = self.last
        span.put(self.keys, k_1GTP, span.end, places)
        span.put(self.values, v_1GTP, span.end, places)


def _store(shape: tuple[int, int], slots: int, dtype: torch.dtype, bits: int | None) -> Plain | Rounded:
    G, P = shape
    whole = G, slots, P
    return Plain(whole, dtype) if bits is None else Rounded(whole, dtype, bits)


class _Span:
    """Where the tokens of a piece stand in the pass, and the slots of its row."""

    def __init__(self, piece: Piece, first: int, size: int) -> None:
        self.tokens = slice(first, first + len(piece.ids))
        self.start, self.end = piece.start, piece.end
        self.first_guess = first + self.end - self.start
        self.runs = branched(piece.drafts)
        self.together = self.first_guess if self.runs else self.tokens.stop  # up to where one stands behind the other
        used = piece.blocks[: -(-(self.end + piece.deepest) // size)]
        begin = used[0]
        self.run = list(used) == list(range(begin, begin + len(used)))  # one block behind the other: nothing to gather
        self.offset = begin * size
        if not self.run:
            starts = torch.tensor(used).unsqueeze(1) * size
            slots = starts + torch.arange(size)
            self.slots = slots.flatten()

    def attended(self, keys: Plain | Rounded, values: Plain | Rounded, k_1GTP: Tensor, v_1GTP: Tensor,
                 attend: Attend) -> list[Tensor]:
        """What its tokens find, in their order: those that are no guesses, and what of each branch is its own."""
        found = {}
        own = list(range(self.tokens.start, self.together))
        for run in (_Run(own, len(own)), *self.runs):
            start, places = self.start, own
            if run.path is not own:
                start, places = self.end, [self.first_guess + node for node in run.path]
            self.put(keys, k_1GTP, start, places)
            self.put(values, v_1GTP, start, places)
            end = start + len(places)
            asking = slice(places[-run.fresh], places[-1] + 1)
            found[asking.start] = attend(asking, self.get(keys, end), self.get(values, end), None)
        return [found[first] for first in sorted(found)]

    def put(self, held: Plain | Rounded, new_1GTP: Tensor, start: int, places: Sequence[int]) -> None:
        """Write what stands at these places of the pass to the row's positions from `start` on."""
        count = len(places)
        first, last = places[0], places[-1] + 1
        chosen: Any = slice(first, last)
        if last - first > count:
            chosen = torch.tensor(places)
        slots = self._slots(start, start + count)
        held.put(slots, new_1GTP[0, :, chosen])

    def get(self, held: Plain | Rounded, end: int) -> Tensor:
        """The row's positions [1, G, S, P] up to `end`."""
        return held.get(self._slots(0, end)).unsqueeze(0)

    def _slots(self, start: int, end: int) -> slice | Tensor:
        if self.run:
            return slice(self.offset + start, self.offset + end)
        return self.slots[start:end]


@dataclass(frozen=True)
class _Run:
    """Places that are read one behind the other, of which the last `fresh` ones ask."""

    path: list[int]
    fresh: int


def branched(tree: Tree) -> list[_Run]:
    """Paths of a tree that together ask for every node once, those who ask side by side; none where the nodes stand one
    behind the other."""
    if tree.parents == list(range(-1, len(tree.parents) - 1)):
        return []
    asked: set[int] = set()
    found = []
    for path in paths(tree):
        fresh = [node for node in path if node not in asked]
        asked.update(fresh)
        begin = 0
        for place, node in enumerate(fresh, start=1):
            if place == len(fresh) or fresh[place] != node + 1:
                found.append(_Run(path_to(tree, node), place - begin))
                begin = place
    return found


class _Pass(Cache):
    """What a network is told of one pass over several pieces."""

    def __init__(self, layers: list[Any], positions_1T: Tensor) -> None:
        super().__init__(layers)
        self.kept = None  # rows stand in one another's place
        self.positions_1T = positions_1T

    def advance(self, tokens_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        """The positions of the tokens in their own rows."""
        return self.positions_1T


class PagedRows:
    """The rows of a network in blocks, read piece by piece: pieces go through the network side by side, and rows with
    one beginning share its blocks."""

    def __init__(self, model: Network, blocks: int, size: int, kept: Sequence[Width],
                 adapters: Many | None = None, bits: int | None = None) -> None:
        """bits: of each number that is kept, 8 or 4; None: as they are."""
        self.model, self.size, self.adapters = model, size, adapters
        self.drafted: dict[int, _Span] = {}  # by row, where a pass had guesses in branches
        with torch.inference_mode():
            self.layers = [_Layer(width, blocks * size, bits) for width in kept]

    @torch.inference_mode()
    def read(self, pieces: Sequence[Piece]) -> list[Read]:
        """What the network says to each of the pieces."""
        spans = self._spans(pieces)
        for layer in self.layers:
            layer.spans = spans
        positions = [position for piece in pieces for position in piece.positions()]
        ids = [number for piece in pieces for number in piece.ids]
        places = [place for span, piece in zip(spans, pieces) for place in _asked(span.tokens.stop, piece)]
        tokens_1T = torch.tensor([ids])
        memory = _Pass(self.layers, torch.tensor([positions]))
        if self.adapters is not None:
            self.adapters.choose(_numbers(pieces))
        states_ND, routings = self.model.states(tokens_1T, memory, torch.tensor(places, dtype=torch.int64))
        by_piece = _split(self.model, states_ND, pieces)
        return [Read(logits, _experts(routings, span.tokens, len(ids)), states)
                for (logits, states), span in zip(by_piece, spans)]

    def _spans(self, pieces: Sequence[Piece]) -> list[_Span]:
        spans, first = [], 0
        for piece in pieces:
            spans.append(_Span(piece, first, self.size))
            first += len(piece.ids)
        self.drafted = {piece.row: span for span, piece in zip(spans, pieces) if span.runs}
        return spans

    @torch.inference_mode()
    def settle(self, row: int, nodes: Sequence[int]) -> None:
        """Of a row's guesses in the last pass these held, one behind the other."""
        span = self.drafted.get(row)
        if span is not None and nodes:
            for layer in self.layers:
                layer.settle(span, nodes)

    def forget(self, row: int) -> None:
        """The row is over; nothing is kept of it but in its blocks."""


class SingleRows:
    """The rows of a network whose mixers keep more than keys and values, or look across a batch: one after the other.

    Nothing is shared between them, and a prompt is read whole, as `generate` reads it.
    """

    def __init__(self, model: Network, adapters: Many | None = None) -> None:
        self.model, self.adapters = model, adapters
        self.caches: dict[int, Cache] = {}

    def read(self, pieces: Sequence[Piece]) -> list[Read]:
        """What the network says to each of the pieces; a row begins anew with one that starts at 0."""
        return [self._read(piece) for piece in pieces]

    @torch.inference_mode()
    def _read(self, piece: Piece) -> Read:
        if piece.start == 0:
            self.caches[piece.row] = self.model.new_cache()
        count = len(piece.ids)
        tokens_1T = torch.tensor([list(piece.ids)])
        places = torch.tensor(_asked(count, piece), dtype=torch.int64)
        if self.adapters is not None:
            self.adapters.choose(_numbers([piece]))
        found_ND, routings = self.model.states(tokens_1T, self.caches[piece.row], places)
        ((logits, states),) = _split(self.model, found_ND, [piece])
        return Read(logits, _experts(routings, slice(0, count), count), states)

    def settle(self, row: int, nodes: Sequence[int]) -> None:
        """Rows that are read one by one have no guesses."""

    def forget(self, row: int) -> None:
        """The row is over."""
        self.caches.pop(row, None)


def _numbers(pieces: Sequence[Piece]) -> Tensor:
    """The adapter of each token of a pass."""
    found: list[int] = []
    for piece in pieces:
        found += [piece.adapter] * len(piece.ids)
    return torch.tensor(found, dtype=torch.int64)


def _split(model: Network, states_ND: Tensor, pieces: Sequence[Piece]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and states of each piece; the head is not run for those that are felt."""
    spoken_ND = states_ND
    if any(piece.felt for piece in pieces):
        spoken = [not piece.felt for piece in pieces for _ in range(piece.asked)]
        spoken_ND = states_ND[torch.tensor(spoken)]
    logits_NV = model.logits_of(spoken_ND)
    sizes = [0 if piece.felt else piece.asked for piece in pieces]
    states = states_ND.split([piece.asked for piece in pieces])
    return zip(logits_NV.split(sizes), states)


def _asked(end: int, piece: Piece) -> list[int]:
    return list(range(end - piece.asked, end))


def _experts(routings: Sequence[Routing | None], tokens: slice, total: int) -> list[Tensor | None]:
    """The experts of some of a pass's `total` tokens, of each layer; None where it does not tell them by token."""
    found: list[Tensor | None] = []
    for routing in routings:
        told = routing is not None and len(routing.indices_TK) == total
        found.append(routing.indices_TK[tokens] if routing is not None and told else None)
    return found
