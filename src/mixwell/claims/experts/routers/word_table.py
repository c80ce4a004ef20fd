"""MoWE: many small experts bound to words remember rare facts that equal computation forgets otherwise.

Paper: Memory Augmented Language Models through Mixture of Word Experts.
Tried: 2,048 facts (entity, relation -> one of 64 values), entities of Zipf's frequencies; 64 experts of width 16 by a
table over pairs of tokens, against learnt top-1 routing over the same experts, with a dense block of width 16 beside.
Share of rare facts (entities after the 64th) recalled. Against it: a share that is no higher than learnt routing's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.claims._methods import with_aux
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._digits import share_right
from mixwell.claims.experts._synthetic import BALANCED, FINE, SIZE, TOP1, build
from mixwell.claims.starts import level
from mixwell.core.rng import generator
from mixwell.core.routing import Context

DIM, ENTITIES, RELATIONS, VALUES = 32, 256, 8, 64
VOCAB = ENTITIES + RELATIONS
SCALE = DIM**-0.5
TABLE = {"router": {"method": "word_table", "vocab_size": VOCAB, "num_words": 4096, "max_length": 2}, "balance": {}}
OPTIONS: dict[str, Any] = {"dim": DIM, "hidden_dim": 16}


class Facts:
    """Rows of two tokens, entity and relation; the second one's state is the sum of both embeddings."""

    def __init__(self, seed: int) -> None:
        draws = generator(seed, "facts")
        self.embeddings_VD = torch.randn(VOCAB, DIM, generator=draws)
        codes = torch.randn(VALUES, DIM, generator=draws)
        self.codes = codes * SCALE
        self.answers = torch.randint(VALUES, (ENTITIES, RELATIONS), generator=draws)

    def rows(self, count: int, draws: torch.Generator, first: int = 0) -> Tensor:
        """Token ids [count, 2] of entities from `first` on."""
        ranks = torch.arange(1, ENTITIES + 1)
        shares = 1 / ranks
        shares[:first] = 0
        entities = torch.multinomial(shares, count, replacement=True, generator=draws)
        relations = torch.randint(RELATIONS, (count,), generator=draws)
        tokens = ENTITIES + relations
        return torch.stack([entities, tokens], 1)

    def given(self, ids_B2: Tensor) -> tuple[Tensor, Context]:
        """What a layer is given."""
        state = self.embeddings_VD[ids_B2].cumsum(1)
        tokens = ids_B2.flatten()
        shape = (len(ids_B2), 2)
        return state.flatten(0, 1), Context(token_ids_T=tokens, batch_shape=shape)

    def ask(self, layer: Any, ids_B2: Tensor) -> tuple[Tensor, Tensor, Any]:
        """(scores of the values, right answers, what the layer gave)."""
        mixed = layer(*self.given(ids_B2))
        entity, relation = ids_B2.T
        answers = self.answers[entity, relation - ENTITIES]
        of_relations = mixed.y_TD[1::2]
        scores = of_relations @ self.codes.T
        return scores, answers, mixed


def recall(layer: Any, facts: Facts, draws: torch.Generator, lr: float) -> float:
    """Share of rare facts recalled after 600 steps of 256 facts."""
    first = facts.rows(512, draws)
    level(layer, facts.given(first), SIZE)
    optimizer = torch.optim.Adam(layer.parameters(), lr=lr)
    layer.train()
    for _ in range(600):
        rows = facts.rows(256, draws)
        scores, answers, mixed = facts.ask(layer, rows)
        loss = nn.functional.cross_entropy(scores, answers)
        optimizer.zero_grad()
        with_aux(loss, mixed.aux).backward()
        optimizer.step()
    rare = facts.rows(8192, draws, first=64)
    with torch.no_grad():
        scores, answers, _ = facts.ask(layer.eval(), rare)
    return share_right(scores, answers)


def by_words(bench: Bench, seed: int, *, lr: float) -> float:
    """Recall of the experts that the table chooses."""
    facts = Facts(seed)
    draws = generator(seed, "rows")
    layer = build(seed, TABLE, num_experts=64, **OPTIONS)
    ids = facts.rows(50_000, draws)
    text = ids.flatten()
    layer.router.fit_tokens(text, draws)
    return recall(layer, facts, draws, lr)


def by_learning(bench: Bench, seed: int, *, lr: float, balance: Mapping[str, Any]) -> float:
    """Recall of the same experts behind a learnt router."""
    layer = build(seed, {**TOP1, "balance": balance}, num_experts=64, **OPTIONS)
    return recall(layer, Facts(seed), generator(seed, "rows"), lr)


def by_one(bench: Bench, seed: int, *, lr: float) -> float:
    """Recall of a dense block of one expert's width."""
    layer = build(seed, {}, method="swiglu", **OPTIONS)
    return recall(layer, Facts(seed), generator(seed, "rows"), lr)


CLAIM = Claim(
    "Word experts recall rare facts better than learnt routing.", "share of rare facts recalled", lower_is_better=False,
    sides={"method": Side(by_words, {}, FINE), "baseline": Side(by_learning, {}, BALANCED),
           "dense": Side(by_one, {}, FINE)})
