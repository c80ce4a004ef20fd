"""Two levels of speculation: a tiny model drafts for the model with little of its cache, which drafts for itself.

**Equation:** p the model's law, q the law of the same weights on a small cache, d a tiny model's. Inside: d proposes
    one token x, which q takes with chance min(1, q(x) / d(x)) and else replaces by one of max(0, q - d), made to sum
    to 1; where x was taken, q adds one of its own; until gamma tokens are there. Outside: p reads them all at once
    and takes each with chance min(1, p / q); the first that it turns down is replaced by one of max(0, p - q);
    where it takes all, it adds one of its own.
    The small cache: of the prompt's chunks those whose mean key has the largest product with the last query, the first
    chunk always among them.
**Shapes:** laws [V]; keys [T, D], query [D].
**Reference:** Sun et al. 2024, TriForce (2404.11912), algorithm 1 and section 4.1, and the authors' code.
**Differs:** the inner test replaces what it turns down by the residual, where the released code draws from q itself,
    after which the outer test no longer keeps p. The chunks are chosen for one head; laws are plain functions of ids.
**Fails when:** d is seldom right: then the model's own draft comes one token at a time; the small cache misses what
    the text hangs on: then p turns most of it down.
**Cost:** a pass of p for gamma tokens, a pass of q for one or two, a pass of d for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.serve.speculation import Law, draw, read_at_once, verified


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the hierarchy."""

    drafts: int = 6  # gamma, tokens that the model reads at once
    chunk: int = 8  # positions of a chunk of the small cache
    budget: int = 4096  # positions of the small cache, a chunk at least

    def __post_init__(self) -> None:
        check_least(self, drafts=1, chunk=1)
        if self.budget < self.chunk:
            raise ValueError(f"budget is {self.budget}; expected a chunk of {self.chunk} positions at least")


class Passes(NamedTuple):
    """The tokens of one outer turn, and how often each law was asked."""

    tokens: list[int]
    whole: int
    small: int
    tiny: int


def kept_places(query_D: Tensor, key_TD: Tensor, config: Config) -> Tensor:
    """Positions of the small cache, upward: whole chunks of the prompt; the last chunk may be shorter."""
    chunks = key_TD.split(config.chunk)
    scores_C = torch.stack([part.mean(0) @ query_D for part in chunks])
    scores_C[0] = torch.inf
    most = min(len(chunks), config.budget // config.chunk)
    best = scores_C.topk(most).indices.sort().values
    places = torch.arange(len(key_TD)).split(config.chunk)
    return torch.cat([places[int(number)] for number in best])


def inner(ids: Sequence[int], small: Law, tiny: Law, count: int,
          generator: torch.Generator) -> tuple[list[int], list[Tensor], int]:
    """(tokens of the small cache's law, at least `count` and at most one more; that law at each; passes of it)."""
    tokens: list[int] = []
    laws: list[Tensor] = []
    passes = 0
    while len(tokens) < count:
        drafted_V = tiny([*ids, *tokens])
        token = draw(drafted_V, generator)
        wanted_V = small([*ids, *tokens])  # one pass reads the draft too, and gives the law behind it
        passes += 1
        token, held = verified(wanted_V, drafted_V, token, generator)
        tokens.append(token)
        laws.append(wanted_V)
        if held:
            laws.append(small([*ids, *tokens]))
            tokens.append(draw(laws[-1], generator))
    return tokens, laws, passes


@method(title="Hierarchical speculation", paper="TriForce: Lossless Acceleration of Long Sequence Generation with "
        "Hierarchical Speculative Decoding", year=2024)
def hierarchy(ids: Sequence[int], whole: Law, small: Law, tiny: Law, config: Config,
              generator: torch.Generator) -> Passes:
    """One turn: at least one token, each distributed as `whole` has it, and what it took."""
    tokens, laws, passes = inner(ids, small, tiny, config.drafts, generator)
    found = read_at_once(ids, whole, tokens, laws, generator)
    return Passes(found, 1, passes, passes)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three laws that hang on the last token."""
    drawn = torch.rand(3, 8, 8, generator=generator, dtype=torch.float64)
    laws = {}
    for name, table in zip(("whole", "small", "tiny"), drawn.softmax(-1)):
        laws[name] = lambda ids, table=table: table[ids[-1]]
    return {"ids": [3], **laws, "config": Config(drafts=3), "generator": generator}
