"""Two levels of drafts: less work for a token than with either drafting model alone.

Paper: TriForce: Lossless Acceleration of Long Sequence Generation with Hierarchical Speculative Decoding.
Tried: chains over 32 tokens whose laws are softmaxes of random scores: the model's, one that differs from it a little
(its small cache), one that differs more (the tiny model); passes cost 1, 0.15 and 0.05. Work a token over 600 tokens,
the number of drafts tuned for each. Against one level with the small cache; one with the tiny model has to be beaten as
well. Against it: less than a tenth saved. Whether caches of real models differ so little is not tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.core.rng import generator
from mixwell.serve.hierarchy import Config, hierarchy
from mixwell.serve.speculation import Law, draw, read_at_once

VOCABULARY, TOKENS, SHARP = 32, 600, 2.5
APART = {"small": 0.15, "tiny": 0.8}  # spread of what is added to the model's scores, theirs being 1
COST = {"whole": 1.0, "small": 0.15, "tiny": 0.05}


def laws(draws: torch.Generator) -> dict[str, Law]:
    """The three models."""
    scores_VV = torch.randn(VOCABULARY, VOCABULARY, generator=draws)
    found = {"whole": scores_VV}
    for name, spread in APART.items():
        found[name] = scores_VV + spread * torch.randn(scores_VV.shape, generator=draws)
    tables = {name: (SHARP * scores).softmax(-1) for name, scores in found.items()}
    return {name: partial(following, table) for name, table in tables.items()}


def following(table_VV: Tensor, ids: Sequence[int]) -> Tensor:
    """The law of what follows the last token."""
    return table_VV[ids[-1]]


def one_level(ids: list[int], whole: Law, drafting: Law, drafts: int, draws: torch.Generator) -> list[int]:
    """A turn of plain speculation."""
    guesses: list[int] = []
    drafted = []
    for _ in range(drafts):
        law_V = drafting([*ids, *guesses])
        drafted.append(law_V)
        guesses.append(draw(law_V, draws))
    return read_at_once(ids, whole, guesses, drafted, draws)


def work(bench: Bench, seed: int, *, kind: str, drafts: int) -> float:
    """Cost a token."""
    draws = generator(seed, "hierarchy", kind, drafts)
    models = laws(generator(seed, "laws"))
    ids, cost = [0], 0.0
    while len(ids) <= TOKENS:
        if kind == "both":
            turn = hierarchy(ids, **models, config=Config(drafts=drafts), generator=draws)
            ids += turn.tokens
            cost += turn.whole * COST["whole"] + turn.small * COST["small"] + turn.tiny * COST["tiny"]
        else:
            ids += one_level(ids, models["whole"], models[kind], drafts, draws)
            cost += COST["whole"] + drafts * COST[kind]
    return cost / (len(ids) - 1)


DRAFTS = {"drafts": (2, 3, 4, 6, 8, 12)}
CLAIM = Claim(
    "Two levels of drafts take a tenth of the work off what one takes.", "cost a token", at_least=0.1, relative=True,
    provided=(Comparison(baseline="tiny model alone", at_least=0.1, relative=True),),
    sides={"method": Side(work, {"kind": "both"}, DRAFTS),
           "baseline": Side(work, {"kind": "small"}, DRAFTS),
           "tiny model alone": Side(work, {"kind": "tiny"}, DRAFTS)})
