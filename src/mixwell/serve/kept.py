"""Rows of an engine whose caches let positions go, by a rule of `mixwell.serve.keeping`: long conversations in bounded
memory, answered as if what went had never been said.

What stays of a row hangs on its ids alone, not on the pieces in which they come: a rule that chooses anew is asked
after each id from the first that is too many on, one that chooses once is asked at the end of the prompt.

Legend: G key/value heads, P head width, T new positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.adapters.many import Many
from mixwell.core.errors import MixwellError
from mixwell.kernels.cache import Attend
from mixwell.lm.cache import Cache
from mixwell.lm.network import Network
from mixwell.serve.keeping import heavy_hitters, last_queries, window
from mixwell.serve.keeping.rules import Kept, Rule, RuledCache, check_plain
from mixwell.serve.paged import PagedRows, Piece

LEAST = 8  # positions that may be asked for
SINKS = 4  # first positions that a window keeps


@dataclass(frozen=True)
class Keep:
    """What stays of a row: at most `budget` positions, of its prompt alone where `queries` choose them once."""

    policy: str
    budget: int
    rule: Callable[[], Rule]  # a new one for each layer and row
    queries: int = 0  # last ids of the prompt that choose, read in one pass; 0: chosen anew after each id

    @property
    def name(self) -> str:
        """As it is asked for."""
        return f"{self.policy}:{self.budget}"

    def positions(self, prompt: int, ids: int, computed: int) -> int:
        """Positions that a row takes whose ids are all read, `computed` of them already."""
        if not self.queries:
            return min(ids, self.budget + 1)  # one more while it is read
        return ids if computed < prompt else ids - self.dropped(prompt, computed)

    def dropped(self, prompt: int, computed: int) -> int:
        """Positions of a row that are gone."""
        before = min(prompt, computed) if self.queries else computed
        if self.queries and computed < prompt:
            return 0
        return max(0, before - self.budget)

    def piece(self, prompt: int, computed: int, count: int) -> int:
        """So many ids are read next where `count` may be: those that choose are not parted."""
        left = prompt - computed
        if count >= left or left - count >= self.queries:
            return count
        return left - self.queries if left > self.queries else left

    def cache(self, prompt: int | None = None, answer: int = 0) -> RuledCache:
        """A layer's cache for one row. prompt: ids that it has; default those of the first pass. answer: ids at most.
        """
        if self.queries:
            return AtPromptsEnd(self.rule(), self.queries, prompt, answer)
        return AfterEachToken(self.rule(), self.budget)


def _window(budget: int) -> Keep:
    config = window.Config(first=SINKS, last=budget - SINKS)
    return Keep("window", budget, lambda: window.Window(config))


def _heavy_hitters(budget: int) -> Keep:
    config = heavy_hitters.Config(budget=budget, recent=budget // 2)
    return Keep("heavy_hitters", budget, lambda: heavy_hitters.HeavyHitters(config))


def _last_queries(budget: int) -> Keep:
    queries = min(32, budget // 2)
    config = last_queries.Config(budget=budget, queries=queries)
    return Keep("last_queries", budget, lambda: last_queries.LastQueries(config), queries)


POLICIES: dict[str, Callable[[int], Keep]] = {"window": _window, "heavy_hitters": _heavy_hitters,
                                              "last_queries": _last_queries}


def keep_of(text: str) -> Keep:
    """What `POLICY:TOKENS` asks for. Raises `MixwellError` for another form, policy or too few tokens."""
    policy, _, tokens = text.partition(":")
    known = ", ".join(POLICIES)
    if policy not in POLICIES or not tokens.isascii() or not tokens.isdigit():
        raise MixwellError(f"keep is {text!r}; expected POLICY:TOKENS with one of the policies {known}, such as "
                           "window:1024.")
    budget = int(tokens)
    if budget < LEAST:
        raise MixwellError(f"keep is {text!r}; expected {LEAST} tokens or more.")
    return POLICIES[policy](budget)


def within(attend: Attend, first: int, count: int) -> Attend:
    """`attend` for `count` of the new positions, the first of which is `first`."""

    def asked(span: slice, keys: Tensor, values: Tensor, keep: Tensor | None) -> Tensor:
        begin, end, _ = span.indices(count)
        return attend(slice(first + begin, first + end), keys, values, keep)

    return asked


class AfterEachToken(RuledCache):
    """Keeps `budget` positions at most after each id, however many come at once."""

    def __init__(self, rule: Rule, budget: int) -> None:
        super().__init__(rule)
        self.budget = budget

    def attended(self, k_BGTP: Tensor, v_BGTP: Tensor, mask_BT: Tensor | None, attend: Attend) -> Tensor:
        """As `RuledCache.attended`; of the first pass so many count as one as may stay."""
        T = k_BGTP.shape[2]
        if self._keys is None:
            self._keys = _buffer(k_BGTP, self.budget + 1)
            self._values = _buffer(v_BGTP, self.budget + 1)
        head = 0 if self.length else min(T, self.budget)
        found = []
        for first, last in ((0, head), (head, T)):
            if first < last:
                keys, values = k_BGTP[:, :, first:last], v_BGTP[:, :, first:last]
                found.append(super().attended(keys, values, mask_BT, within(attend, first, last - first)))
        return torch.cat(found, 2)

    def _hold(self, before: Kept, kept: Kept) -> None:
        """Hold these positions and no others, where they lie."""
        if kept.keys.shape[2] == before.keys.shape[2]:  # nothing went
            return
        self.length = 0
        self.append(kept.keys, kept.values, None)


class AtPromptsEnd(RuledCache):
    """Keeps what the rule chooses once the prompt is read, and all that follows."""

    def __init__(self, rule: Rule, queries: int, prompt: int | None, answer: int) -> None:
        super().__init__(rule)
        self.queries, self.answer = queries, answer
        self.left = prompt  # ids of the prompt that are not read

    def attended(self, k_BGTP: Tensor, v_BGTP: Tensor, mask_BT: Tensor | None, attend: Attend) -> Tensor:
        """Add T positions; the pass that ends the prompt lets go of what its last queries do not look at."""
        T = k_BGTP.shape[2]
        if self.left is None:
            self.left = T
        if self._keys is None:
            self._keys, self._values = _buffer(k_BGTP, self.left), _buffer(v_BGTP, self.left)
        head = min(T, self.left)
        found = []
        for first, last in ((0, head), (head, T)):
            if first < last:
                kept = self._with(k_BGTP[:, :, first:last], v_BGTP[:, :, first:last])
                found.append(attend(slice(first, last), *kept, None))
            if first < last == head:
                self._read(kept, head, attend)
        return torch.cat(found, 2)

    def _read(self, kept: Kept, count: int, attend: Attend) -> None:
        """So many ids more of the prompt were read."""
        assert self.left is not None
        self.left -= count
        if self.left:
            return
        asking = min(count, self.queries)
        weights = self._weights(kept, slice(count - asking, count), asking, attend)
        chosen = self.rule.prompt(weights, kept)
        self.length = 0
        most = chosen.keys.shape[2] + self.answer
        self._keys, self._values = _buffer(chosen.keys, most), _buffer(chosen.values, most)
        self.append(chosen.keys, chosen.values, None)


def _buffer(like_BGTP: Tensor, positions: int) -> Tensor:
    """Room for so many positions; what is never written takes no memory."""
    B, G, _, P = like_BGTP.shape
    return like_BGTP.new_empty(B, G, positions, P)


@dataclass(frozen=True)
class _Span:
    """Where the tokens of a piece stand in the pass, and its row's caches, one a layer."""

    tokens: slice
    caches: list[RuledCache]


class _Layer:
    """What a layer of a pass asks: each piece its own row's cache."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.spans: list[_Span] = []

    def attended(self, k_BGTP: Tensor, v_BGTP: Tensor, mask_BT: Tensor | None, attend: Attend) -> Tensor:
        """What each piece finds over what stayed of its own row, side by side."""
        found = []
        for span in self.spans:
            keys, values = k_BGTP[:, :, span.tokens], v_BGTP[:, :, span.tokens]
            asked = within(attend, span.tokens.start, keys.shape[2])
            found.append(span.caches[self.number].attended(keys, values, None, asked))
        return torch.cat(found, 2)


class KeptRows(PagedRows):
    """Rows of which a part stays: pieces go through the network side by side, caches are each row's own."""

    def __init__(self, model: Network, keep: Keep, adapters: Many | None = None) -> None:
        """Raises `MixwellError` for a model with other layers than plain causal attention."""
        check_keeps(model)
        self.model, self.keep, self.adapters = model, keep, adapters
        self.layers: list[Any] = [_Layer(number) for number in range(len(model.layers))]
        self.caches: dict[int, list[RuledCache]] = {}
        self.drafted = {}

    def _spans(self, pieces: Sequence[Piece]) -> list[Any]:
        """A row begins anew with a piece that starts at 0."""
        spans, first = [], 0
        for piece in pieces:
            if piece.start == 0:
                self.caches[piece.row] = [self.keep.cache(piece.prompt, piece.answer) for _ in self.layers]
            last = first + len(piece.ids)
            spans.append(_Span(slice(first, last), self.caches[piece.row]))
            first = last
        return spans

    def forget(self, row: int) -> None:
        """The row is over."""
        self.caches.pop(row, None)


def check_keeps(model: Network) -> None:
    """Raise `MixwellError` for a model whose caches cannot let positions go."""
    for number, layer in enumerate(model.layers):
        check_plain(layer.sequence_mixer, number)


@contextmanager
def kept_caches(model: Network, keep: Keep) -> Iterator[None]:
    """A block in which the model's own caches keep what `keep` says."""
    check_keeps(model)
    usual = model.new_cache
    model.new_cache = lambda: Cache([keep.cache() for _ in model.layers])  # type: ignore[method-assign]
    try:
        yield
    finally:
        model.new_cache = usual  # type: ignore[method-assign]
