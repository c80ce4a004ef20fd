"""Mixture of word experts: a large fixed vocabulary of words, each bound to an expert, so that experts act as memory.

**Equation:** y_t = E_{b(w_t)}(x_t), with w_t the longest word of the routing vocabulary that ends at token t, and b a
    table that spreads words over experts evenly by frequency (most frequent first, into the lightest bucket).
**Shapes:** token ids [T], indices and weights [T, 1], scores [T, E] (one-hot); table [V + num_words].
**Reference:** dos Santos et al. 2023, MoWE (2311.10768), sections 2.2-2.4.
**Differs:** the paper's routing vocabulary comes from a second tokenizer and a knowledge base; here it holds all token
    ids and the most frequent sequences of two to `max_length` ids in the training text. A token goes by the word that
    ends at it, so that routing is causal. Blocks of experts by frequency, which serve the paper's capacities, are not
    needed without dropping. From the paper's summary and memory.
**Fails when:** a part of a sequence comes with `num_words` above 0 and without the ids before it, and it says so.
**Cost:** O(T L log(V + num_words)) to route; one pass over the text to learn the words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import TokenRouter, balanced_buckets, one_hot_routing
from mixwell.kernels.norm import wide
from mixwell.mixing import check_least

UNUSED = 2**63 - 1  # key of a word that does not exist; sorts last


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the word table."""

    vocab_size: int  # V, number of token ids
    num_words: int = 0  # words of several tokens in the routing vocabulary, 0 or more
    max_length: int = 3  # L, tokens in a word at most, at least 2
    frequencies: tuple[float, ...] = ()  # of each id, where num_words is 0; empty: learnt by fit_tokens

    def __post_init__(self) -> None:
        check_least(self, vocab_size=1, num_words=0, max_length=2)
        ids = self.vocab_size
        words = self.num_words
        given = len(self.frequencies)
        if (ids + 1) ** self.max_length >= UNUSED:
            raise ValueError(f"words of {self.max_length} from {ids} ids do not fit 63 bits; lower max_length")
        if given and (words or given != ids):
            raise ValueError(f"{given} frequencies for {ids} token ids and {words} words; give one for each id and no "
                             "words, or learn them by fit_tokens")


def sequence_keys(ids_BS: Tensor, length: int, vocab_size: int) -> Tensor:
    """A number for the `length` ids that end at each position, [B, S - length + 1]; different for every sequence."""
    rows, positions = ids_BS.shape
    steps = max(positions - length + 1, 0)
    keys = ids_BS.new_zeros(rows, steps)
    if not steps:
        return keys
    for i in range(length):  # the digits of a number to the base V + 1
        digit = ids_BS[:, i : i + steps] + 1
        keys = keys * (vocab_size + 1) + digit
    return keys


def find_words(ids_BS: Tensor, keys_N: Tensor, config: Config) -> Tensor:
    """The place in the sorted keys of the longest word that ends at each position, int64 [B, S]."""
    single = sequence_keys(ids_BS, 1, config.vocab_size)
    words = torch.searchsorted(keys_N, single)
    if not config.num_words:
        return words
    last = len(keys_N) - 1
    for length in range(2, config.max_length + 1):  # a longer word takes the place of a shorter one
        keys = sequence_keys(ids_BS, length, config.vocab_size)
        place = torch.searchsorted(keys_N, keys).clamp_max(last)
        known = keys_N[place] == keys
        tail = words[:, length - 1 :]
        words[:, length - 1 :] = torch.where(known, place, tail)
    return words


def frequent_sequences(ids_N: Tensor, config: Config) -> Tensor:
    """Keys of the `num_words` most frequent sequences of two to `max_length` ids; what occurs once is left out."""
    row = ids_N.unsqueeze(0)
    found = []
    for length in range(2, config.max_length + 1):
        keys = sequence_keys(row, length, config.vocab_size)
        found.append(torch.unique(keys, return_counts=True))
    keys, counts = (torch.cat(parts) for parts in zip(*found))
    repeated = counts > 1
    keys = keys[repeated]
    counts = counts[repeated]
    order = counts.argsort(descending=True, stable=True)
    return keys[order[: config.num_words]]


@method(
    title="Word table",
    paper="Memory Augmented Language Models through Mixture of Word Experts",
    year=2023,
    tags={"static", "token-choice", "batch-invariant", "simplex"},
)
class WordTable(TokenRouter):
    """Fixed table from words to experts; see the module's card."""

    has_logits = False

    config: Config
    keys_N: Tensor
    table_N: Tensor

    def __init__(self, dim: int, num_experts: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__(dim, num_experts, config, generator)
        ids = config.vocab_size
        size = ids + config.num_words
        keys = torch.full((size,), UNUSED)
        keys[:ids] = torch.arange(1, ids + 1)
        table = torch.full(keys.shape, -1)
        if config.frequencies:
            table = torch.tensor(balanced_buckets(config.frequencies, num_experts))
        self.register_buffer("keys_N", keys)
        self.register_buffer("table_N", table)

    @property
    def experts_per_token(self) -> float:
        """One."""
        return 1.0

    @property
    def needs_tokens(self) -> bool:
        """Whether the table still waits for frequencies."""
        return int(self.table_N[0]) < 0

    def fit_tokens(self, tokens_N: Tensor, generator: torch.Generator | None = None) -> None:
        """Learn the words and their frequencies from a stream of token ids [N] and spread them over the experts."""
        ids = self.config.vocab_size
        if self.config.num_words:
            words = frequent_sequences(tokens_N, self.config).sort().values
            self.keys_N[ids:] = UNUSED
            self.keys_N[ids : ids + len(words)] = words
        row = tokens_N.unsqueeze(0)
        places = find_words(row, self.keys_N, self.config).squeeze(0)
        counts = torch.bincount(places, minlength=len(self.keys_N)).tolist()
        table = balanced_buckets(counts, self.num_experts)
        self.table_N.copy_(torch.tensor(table))

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D] by the words that end at them.

        Raises `MixwellError` where words of several tokens cannot be read.
        """
        ids = self.ids(x_TD, context, self.config.vocab_size)
        rows, earlier = ids.unsqueeze(0), 0
        if self.config.num_words:
            rows, earlier = self._rows(context, ids)
        words = find_words(rows, self.keys_N, self.config)
        experts = self.table_N[words[:, earlier:]]
        return one_hot_routing(experts.reshape(-1, 1), self.num_experts, wide(x_TD))

    def _rows(self, context: Context, ids_T: Tensor) -> tuple[Tensor, int]:
        """The ids of each row with those right before them, and how many these are."""
        if context.batch_shape is None:
            raise MixwellError("WordTable reads words of several tokens; give Context(batch_shape=(B, S)).")
        if context.mask_T is not None:
            ids_T = ids_T.masked_fill(~context.mask_T, -1)  # begins no word: a key that starts so is a shorter one's
        rows = ids_T.view(context.batch_shape)
        before = context.earlier_ids_BS
        if before is not None:
            known = before[:, -(self.config.max_length - 1) :]
            return torch.cat((known, rows), 1), known.shape[1]
        positions = context.positions_T
        if positions is None:
            return rows, 0
        starts = positions.view_as(rows)[:, :1]
        if bool((starts > 0).any()):
            raise MixwellError("WordTable reads words of several tokens and got a part of a sequence without its "
                               "start; give the ids before it (Context.earlier_ids_BS), or set num_words: 0.")
        return rows, 0


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six with ids below ten, four experts."""
    frequencies = tuple(1 / (i + 1) for i in range(10))
    config = Config(vocab_size=10, frequencies=frequencies)
    token_ids_T = torch.randint(10, (8,), generator=generator)
    x_TD = torch.randn(8, 6, generator=generator)
    context = Context(token_ids_T=token_ids_T)
    return {"dim": 6, "num_experts": 4, "config": config, "x_TD": x_TD, "context": context}
