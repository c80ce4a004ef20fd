"""Kept by phase: a long answer does not push the prompt out.

Paper: SCOPE: Optimizing Key-Value Cache Compression in Long-context Generation.
Tried: a small model that looks up values by keys; 200 texts of 32 positions and then 24 questions with their answers,
one after the other in one cache of 40 positions: the prompt's 32 and 8 of the answer by the current query, against
heavy hitters of all positions in one pool. Share of right answers to the last twelve. Beside: the two other paces. The
whole cache answers nine of ten, else nothing is tried. Against it: less than a twentieth of the answers more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.serve.keeping._recall import KEYS, model, require_answers, texts
from mixwell.core.rng import generator
from mixwell.serve.keeping.by_phase import ByPhase, Config, Pace
from mixwell.serve.keeping.heavy_hitters import Config as HeavyConfig
from mixwell.serve.keeping.heavy_hitters import HeavyHitters
from mixwell.serve.keeping.rules import Rule, keeping
from mixwell.serve.keeping.shared_context import Config as AskConfig
from mixwell.serve.keeping.shared_context import shared_context

ASKED, ANSWER, RECENT = 24, 8, 4


def phased(pace: Pace) -> Callable[[], Rule]:
    """The method."""
    config = Config(prompt=KEYS, prompt_recent=RECENT, answer=ANSWER, recent=RECENT, longest=2 * ASKED, pace=pace)
    return lambda: ByPhase(config)


def pooled() -> Rule:
    """All positions in one pool of as many."""
    return HeavyHitters(HeavyConfig(budget=KEYS + ANSWER, recent=RECENT))


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Shares of right answers to the last questions."""
    text, questions, answers = texts(200, ASKED, generator(seed, "phase"))
    before = torch.cat([answers[:, :1], answers[:, :-1]], 1)  # each question comes behind the answer before it
    asked = text, torch.cat([before, questions], -1), answers

    def late() -> float:
        found = shared_context(model(), *asked, AskConfig(mode="turns"))
        return float(found[ASKED // 2 :].mean())

    whole = late()
    require_answers(torch.tensor([whole]))
    shares = {"whole cache": whole}
    sides = {"method": phased("slide"), "baseline": pooled, "adaptive": phased("adaptive"),
             "discontinuous": phased("discontinuous")}
    for name, made in sides.items():
        with keeping(model(), made):
            shares[name] = late()
    return shares


CLAIM = Claim("A cache kept by phase answers more of what the prompt holds late in a long answer.",
              "share of right answers to the last twelve questions", lower_is_better=False, at_least=0.05)
