"""A shared text: what the first question chose serves the later ones badly.

Paper: SCBench: A KV Cache-Centric Analysis of Long-Context Methods.
Tried: a small model that looks up values by keys; 200 texts of 32 positions and five questions to each; a quarter of
the positions kept by what the last queries look at, the first question among them. Share of right answers to the first
question against the mean of the later ones. Beside: each question alone behind the text's own choice, and a window of
equal size. The whole cache answers nine of ten, else nothing is tried. Against it: a first answer that is not a fifth
of all texts ahead.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.serve.keeping._recall import KEYS, model, require_answers, texts
from mixwell.core.rng import generator
from mixwell.serve.keeping.last_queries import Config as LastConfig
from mixwell.serve.keeping.last_queries import LastQueries
from mixwell.serve.keeping.rules import Rule, keeping
from mixwell.serve.keeping.shared_context import Config, Mode, shared_context
from mixwell.serve.keeping.window import Config as WindowConfig
from mixwell.serve.keeping.window import Window

BUDGET = KEYS // 4
COUNT, ASKED = 200, 5


def last_queries() -> Rule:
    """A choice by the last two queries."""
    return LastQueries(LastConfig(budget=BUDGET, queries=2, pool=1))


def window() -> Rule:
    """As many positions at the ends."""
    return Window(WindowConfig(first=1, last=BUDGET - 1))


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Shares of right answers."""
    asked = texts(COUNT, ASKED, generator(seed, "shared"))

    def right(made: Callable[[], Rule], mode: Mode) -> Tensor:
        with keeping(model(), made):
            return shared_context(model(), *asked, Config(mode=mode))

    whole = shared_context(model(), *asked, Config(mode="turns"))
    require_answers(whole)
    turns = right(last_queries, "turns")
    alone = right(last_queries, "requests").mean()
    ends = right(window, "turns").mean()
    return {"method": float(turns[0]), "baseline": float(turns[1:].mean()), "questions alone": float(alone),
            "window": float(ends), "whole cache": float(whole.mean())}


CLAIM = Claim("A cache chosen with the first question in sight answers the later ones worse.",
              "share of right answers to the first question; baseline is that of later ones", lower_is_better=False,
              at_least=0.2)
