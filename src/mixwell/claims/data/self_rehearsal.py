"""Self-rehearsal: tuned on its own right answers where it has them, a model forgets less of what it could.

Paper: Selective Self-Rehearsal: A Fine-Tuning Approach to Improve Generalization in Large Language Models.
Tried: a decoder trained on three tasks on strings, one of which, copying, now is to list letters in any order in which
the first is not below the last; its copies are right for every other string. Tuned for 120 steps on 512 lists whose
given answers descend: on its own right answers in their place, against on those given. Share right on the two other
tasks, rates chosen by the mean of old and new. Against it: a share that is no higher, or lists that are right less
often by two points or more.
"""

from __future__ import annotations

from functools import partial

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.data._rehearsal import asked, asked_for, listed_well, measured, own_answers, require_some, start
from mixwell.data.self_rehearsal import Config, self_rehearsal


def rehearsed(bench: Bench, seed: int, *, lr: float) -> dict[str, float]:
    """Tuned on own answers where they are right."""
    rows = asked(seed, "train")
    prompts, given = asked_for(rows)
    answer = partial(own_answers, start(seed))
    targets = self_rehearsal(prompts, given, Config(), answer=answer, judge=listed_well)
    require_some(targets.share(1))
    return measured(seed, rows, targets.answers, lr)


def plain(bench: Bench, seed: int, *, lr: float) -> dict[str, float]:
    """Tuned on the answers given."""
    rows = asked(seed, "train")
    return measured(seed, rows, asked_for(rows)[1], lr)


RATES = {"lr": (3e-4, 1e-3, 3e-3)}
CLAIM = Claim("Tuning on a model's own right answers keeps more of what it could.", "share of answers that are right",
              quantity="old", lower_is_better=False, tuned_by="mean",
              provided=(no_worse("new", 0.02, relative=False, lower_is_better=False),),
              sides={"method": Side(rehearsed, {}, RATES), "baseline": Side(plain, {}, RATES)})
