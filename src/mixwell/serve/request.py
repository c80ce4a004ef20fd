"""A request as the engine sees it: a row of ids to continue, how to draw, and what became of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from mixwell.core import rng
from mixwell.core.errors import MixwellError
from mixwell.lm.streaming import Text
from mixwell.serve.blocks import Name
from mixwell.serve.constrained import Constraint
from mixwell.serve.tools import Call
from mixwell.serve.tree_drafts import Tree
from mixwell.serve.vectors import Pooled, Pooling


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a row is continued."""

    max_tokens: int  # at most; 0 only reads the prompt
    temperature: float = 1.0  # 0 takes the likeliest token always
    top_p: float = 1.0  # share of the probability that is drawn from, above 0
    top_k: int = 0  # draw among so many; 0: all
    min_p: float = 0.0  # share of the likeliest token's probability below which none is drawn
    repetition_penalty: float = 1.0  # divides positive logits of ids seen, prompt counted, above 0
    presence_penalty: float = 0.0  # taken off the logits of ids said
    frequency_penalty: float = 0.0  # taken off for each time that an id was said
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added to the logits of ids
    seed: int | None = None  # of the draws; None: another one each time
    min_tokens: int = 0  # before that no end is drawn
    stop: tuple[str, ...] = ()  # texts at which the answer ends, themselves left out
    stop_ids: frozenset[int] = frozenset()  # ids at which it ends, themselves left out
    logprobs: int | None = None  # so many likeliest ids are told with each; None: no probabilities at all
    prompt_logprobs: bool = False  # the same of the prompt
    experts: bool = False  # which experts each token came from
    label: str = ""  # under which its load of experts is counted
    adapter: int = -1  # number of the adapter that its tokens go through; -1 is none
    grammar: str | None = None  # of the form that the answer has; None: any text
    pooling: Pooling | None = None  # of the prompt's states: its vector is wanted in the place of an answer


@dataclass(frozen=True)
class Token:
    """An id of an answer, and what was asked about it."""

    id: int
    logprob: float | None = None  # nats; None where not asked, and of the first id of a prompt
    top: tuple[tuple[int, float], ...] = ()  # the likeliest ids with theirs
    experts: tuple[tuple[int, ...] | None, ...] | None = None  # of each layer, of the position that it was drawn at


@dataclass(frozen=True)
class Event:
    """What is new of a row."""

    row: Row
    text: str = ""
    tokens: tuple[Token, ...] = ()
    prompt: tuple[Token, ...] = ()  # of the prompt, where asked
    finish: str | None = None  # "stop", "length" or "error"
    error: str = ""
    end: Token | None = None  # at which the answer ended, itself left out
    calls: tuple[Call, ...] = ()  # of tools, once they are complete
    vector: tuple[float, ...] = ()  # of the prompt, where asked


class Drafter(Protocol):
    """Guesses what a row says next, to be verified by the model in one pass."""

    def draft(self, ids: Sequence[int], said: int, longest: int) -> list[int]:
        """Guesses for what follows `ids`, of which `said` are the answer so far."""

    def learn(self, predicted: Sequence[int], accepted: int) -> None:
        """Take in a pass: the likeliest token behind each of its positions, and how many tokens were accepted."""


class Brancher(Protocol):
    """Guesses several ways how a row may go on."""

    def draft(self, ids: Sequence[int], said: int, longest: int) -> Tree:
        """As `Drafter.draft`, in branches."""

    def learn(self, predicted: Sequence[int], accepted: int) -> None:
        """As `Drafter.learn`, by node."""


class Row:
    """A row on its way through the engine. draw: tells rows apart that have one prompt and one seed."""

    def __init__(self, prompt: list[int], options: Options, text: Text, tag: Any = None, draw: int = 0) -> None:
        self.prompt, self.options, self.text = prompt, options, text
        self.tag = tag  # whose it is, for whoever submitted it
        self.number = -1  # the engine's count of rows
        self.ids = list(prompt)
        self.computed = 0  # positions whose keys and values are kept
        self.blocks: list[int] = []
        self.names: list[Name] = []  # of the full blocks of `ids`, as far as they were worked out
        self.named = 0  # blocks that the pool knows by name
        self.cached: int | None = None  # prompt tokens that were found rather than read, once the row was let in
        self.told: list[Token] = []  # the prompt's, while it is read
        self.pooled = None if options.pooling is None else Pooled(options.pooling)
        self.finished = False
        self.drafter: Drafter | Brancher | None = None  # what guesses the row's next ids, where the engine drafts
        self.dropped = 0  # positions that its cache let go
        self.waited = 0  # steps since it came in which it was not let in
        self.score, self.scored = 0.0, 0  # how short its answer will be, and by which lesson
        self.constraint: Constraint | None = None  # what may follow, where the answer's form is given
        self.generator = _generator(options.seed, draw)

    def begin_again(self) -> None:
        """Forget what was read; what was said stays said."""
        self.computed = self.named = self.dropped = 0
        self.told.clear()
        if self.pooled is not None:
            self.pooled.clear()

    @property
    def left(self) -> int:
        """Ids that the network has not read."""
        return len(self.ids) - self.computed

    @property
    def variant(self) -> str:
        """What decides its keys and values beside its ids: rows of different adapters share no blocks."""
        number = self.options.adapter
        return "" if number < 0 else f"adapter {number}"

    @property
    def said(self) -> list[int]:
        """Ids of the answer so far."""
        return self.ids[len(self.prompt) :]


def check_ids(prompt: Sequence[int], known: int) -> None:
    """Refuse a prompt that holds an id which a model of so many lacks."""
    wrong = next((number for number in prompt if not 0 <= number < known), None)
    if wrong is not None:
        raise MixwellError(f"the prompt holds the id {wrong}; this model's are 0 to {known - 1}.")


def _generator(seed: int | None, draw: int) -> torch.Generator:
    key = os.urandom(16).hex() if seed is None else seed
    return rng.generator(key, "serve", draw)
