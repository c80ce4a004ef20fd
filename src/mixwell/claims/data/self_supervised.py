"""Self-to-supervised tuning: with the rest of the answers in its own words, a model forgets less still.

Paper: Selective Self-to-Supervised Fine-Tuning for Generalization in Large Language Models.
Tried: a decoder trained on three tasks on strings, one of which, copying, now is to list letters in any order in which
the first is not below the last; its copies are right for every other string. Tuned for 120 steps on 512 lists whose
given answers descend: on its own right answers, else on copies of the string reversed, the nearest to its manner, which
a rule writes that fails one time in five since so small a model rewords nothing, else on those given; against on those
given alone. Share right on the two other tasks, rates chosen by the mean of old and new. Beside: self-rehearsal.
Against it: a share that is no higher, or lists that are right less often by two points or more.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.data._rehearsal import (
    LETTERS,
    asked,
    asked_for,
    listed_well,
    measured,
    own_answers,
    require_some,
    start,
)
from mixwell.claims.data.self_rehearsal import RATES, plain, rehearsed
from mixwell.core.rng import generator
from mixwell.data.self_supervised import Config, self_supervised

FAILS = 0.2


def reversed_copies(draws: torch.Generator, prompts: list[Tensor], given: list[Tensor]) -> list[Tensor]:
    """The strings of prompts read backwards, some with their last letter for all."""
    found = []
    for prompt in prompts:
        again = prompt[-LETTERS - 1 : -1].flip(0)
        if float(torch.rand((), generator=draws)) < FAILS:
            again = again[-1].expand(LETTERS)
        found.append(again)
    return found


def method(bench: Bench, seed: int, *, lr: float) -> dict[str, float]:
    """Tuned on own answers where they are right, and on the model's wording of others."""
    rows = asked(seed, "train")
    prompts, given = asked_for(rows)
    answer = partial(own_answers, start(seed))
    reword = partial(reversed_copies, generator(seed, "reword"))
    targets = self_supervised(prompts, given, Config(), answer=answer, reword=reword, judge=listed_well)
    require_some(targets.share(1))
    return measured(seed, rows, targets.answers, lr)


CLAIM = Claim("Tuning on a model's own right answers and wordings keeps more of what it could.",
              "share of answers that are right", quantity="old", lower_is_better=False, tuned_by="mean",
              provided=(no_worse("new", 0.02, relative=False, lower_is_better=False),),
              sides={"method": Side(method, {}, RATES), "baseline": Side(plain, {}, RATES),
                     "self-rehearsal": Side(rehearsed, {}, RATES)})
