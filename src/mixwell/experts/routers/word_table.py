"""Mixture of word experts: a large fixed vocabulary of words, each bound to an expert, so that experts act as memory.

**Equation:** y_t = E_{b(w_t)}(x_t), with w_t the longest word of the routing vocabulary that ends at token t, and b a
    table that spreads words over experts evenly by frequency (most frequent first, into the lightest bucket).
**Shapes:** token ids [T], indices and weights [T, 1], scores [T, E] (one-hot); table [V + num_words].
**Reference:** dos Santos et al. 2023, MoWE (2311.10768), sections 2.2-2.4.
**Differs:** the paper's routing vocabulary comes from a second tokenizer and a knowledge base; here it holds all token
    ids and the most frequent sequences of two to `max_length` ids in the training text. A token goes by the word that
    ends at it, so that routing is causal. Blocks of experts by frequency, which serve the paper's capacities, are not
    needed without dropping. From the paper's summary and memory.
**Fails when:** decoding token by token with `num_words` above 0: earlier ids are not at hand, and it says so.
**Cost:** O(T L log(V + num_words)) to route; one pass over the text to learn the words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import TokenRouter, balanced_buckets
from mixwell.kernels.norm import wide

UNUSED = 2**63 - 1  # key of a word that does not exist; sorts last


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the word table."""

    vocab_size: int  # V, number of token ids
    num_words: int = 0  # words of several tokens in the routing vocabulary, 0 or more
    max_length: int = 3  # L, tokens in a word at most, at least 2
    frequencies: tuple[float, ...] = ()  # of each id, where num_words is 0; empty: learnt by fit_tokens

    def __post_init__(self) -> None:
        for name, least in (("vocab_size", 1), ("num_words", 0), ("max_length", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if (self.vocab_size + 1) ** self.max_length >= UNUSED:
            raise ValueError(f"words of {self.max_length} from {self.vocab_size} ids do not fit 63 bits; "
                             "lower max_length")
        if self.frequencies and (self.num_words or len(self.frequencies) != self.vocab_size):
            raise ValueError(f"{len(self.frequencies)} frequencies for {self.vocab_size} token ids and "
                             f"{self.num_words} words; give one for each id and no words, or learn them by fit_tokens")


def sequence_keys(ids_BS: Tensor, length: int, vocab_size: int) -> Tensor:
    """A number for the `length` ids that end at each position, [B, S - length + 1]; different for every sequence."""
    steps = ids_BS.shape[1] - length + 1
    keys = ids_BS.new_zeros(ids_BS.shape[0], max(steps, 0))
    for i in range(length if steps > 0 else 0):
        keys = keys * (vocab_size + 1) + ids_BS[:, i : i + steps] + 1
    return keys


def find_words(ids_BS: Tensor, keys_N: Tensor, config: Config) -> Tensor:
    """The place in the sorted keys of the longest word that ends at each position, int64 [B, S]."""
    words = torch.searchsorted(keys_N, sequence_keys(ids_BS, 1, config.vocab_size))
    for length in range(2, config.max_length + 1 if config.num_words else 2):
        keys = sequence_keys(ids_BS, length, config.vocab_size)
        place = torch.searchsorted(keys_N, keys).clamp_max(keys_N.shape[0] - 1)
        tail = words[:, length - 1 :]
        words[:, length - 1 :] = torch.where(keys_N[place] == keys, place, tail)
    return words


def frequent_sequences(ids_N: Tensor, config: Config) -> Tensor:
    """Keys of the `num_words` most frequent sequences of two to `max_length` ids; what occurs once is left out."""
    found = [torch.unique(sequence_keys(ids_N.unsqueeze(0), n, config.vocab_size), return_counts=True)
             for n in range(2, config.max_length + 1)]
    keys, counts = torch.cat([k for k, _ in found]), torch.cat([c for _, c in found])
    keys, counts = keys[counts > 1], counts[counts > 1]
    return keys[counts.argsort(descending=True, stable=True)[: config.num_words]]


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
        size = config.vocab_size + config.num_words
        keys = torch.full((size,), UNUSED)
        keys[: config.vocab_size] = torch.arange(1, config.vocab_size + 1)
        table = torch.full((size,), -1)
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
        if self.config.num_words:
            words = frequent_sequences(tokens_N, self.config)
            self.keys_N[self.config.vocab_size :] = UNUSED
            self.keys_N[self.config.vocab_size : self.config.vocab_size + words.shape[0]] = words.sort().values
        places = find_words(tokens_N.unsqueeze(0), self.keys_N, self.config).squeeze(0)
        counts = torch.bincount(places, minlength=self.keys_N.shape[0]).tolist()
        self.table_N.copy_(torch.tensor(balanced_buckets(counts, self.num_experts)))

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D] by the words that end at them."""
        ids = self.ids(x_TD, context, self.config.vocab_size)
        rows = self._rows(context, ids) if self.config.num_words else ids.unsqueeze(0)
        indices = self.table_N[find_words(rows, self.keys_N, self.config)].reshape(-1, 1)
        scores = one_hot(indices.squeeze(-1), self.num_experts).to(wide(x_TD).dtype)
        return Routing(indices, scores.gather(-1, indices), scores)

    def _rows(self, context: Context, ids_T: Tensor) -> Tensor:
        if context.batch_shape is None:
            raise MixwellError("WordTable reads words of several tokens; give Context(batch_shape=(B, S)).")
        rows = ids_T.view(context.batch_shape)
        if context.positions_T is not None and bool((context.positions_T.view_as(rows)[:, :1] > 0).any()):
            raise MixwellError("WordTable reads words of several tokens and got a part of a sequence without its "
                               "start; decode without a cache, or set num_words: 0.")
        return rows


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six with ids below ten, four experts."""
    config = Config(vocab_size=10, frequencies=tuple(1 / (i + 1) for i in range(10)))
    ids = torch.randint(10, (8,), generator=generator)
    return {"dim": 6, "num_experts": 4, "config": config, "x_TD": torch.randn(8, 6, generator=generator),
            "context": Context(token_ids_T=ids)}
