"""What a model is tuned on where its own answers may take the place of those given."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError

GIVEN, OWN, REWORDED = 0, 1, 2  # where a target comes from
Answerer = Callable[[list[Any]], Sequence[Any]]  # prompts -> the untouched model's answers to them
Reworder = Callable[[list[Any], list[Any]], Sequence[Any]]  # prompts, answers given -> the same in the model's words
Judge = Callable[[Any, Any, Any], bool]  # prompt, an answer, the answer given -> whether it is as right


class Targets(NamedTuple):
    """A target for each prompt, and where it comes from (`GIVEN`, `OWN` or `REWORDED`), int64 [N]."""

    answers: list[Any]
    source_N: Tensor

    def share(self, source: int) -> float:
        """Share of the targets that come from there."""
        from_there = self.source_N == source
        return float(from_there.double().mean())


def given(prompts: Sequence[Any], answers: Sequence[Any]) -> Targets:
    """Every target as it came; `MixwellError` for none, or for other numbers of prompts and answers."""
    if not len(prompts) or len(prompts) != len(answers):
        raise MixwellError(f"{len(prompts)} prompts came with {len(answers)} answers; expected one for each.")
    source_N = torch.full((len(prompts),), GIVEN)
    return Targets(list(answers), source_N)


def left(targets: Targets, batch: int) -> list[list[int]]:
    """Places of the targets that are still as given, `batch` at a time."""
    still = targets.source_N == GIVEN
    places = still.nonzero().squeeze(1)
    return [part.tolist() for part in places.split(batch) if len(part)]


def replaced(targets: Targets, places: list[int], proposed: Sequence[Any], accepted: Sequence[bool],
             source: int) -> Targets:
    """The targets with those proposed that were accepted."""
    if len(proposed) != len(places):
        raise MixwellError(f"{len(proposed)} answers came for {len(places)} prompts; expected one for each.")
    answers = list(targets.answers)
    source_N = targets.source_N.clone()
    for place, answer, good in zip(places, proposed, accepted):
        if good:
            answers[place] = answer
            source_N[place] = source
    return Targets(answers, source_N)


def judged(judge: Judge, prompts: Sequence[Any], proposed: Sequence[Any], answers: Sequence[Any]) -> list[bool]:
    """What the judge says of each."""
    threes = zip(prompts, proposed, answers)
    said = itertools.starmap(judge, threes)
    return [bool(word) for word in said]


def rehearsed(prompts: Sequence[Any], answers: Sequence[Any], answer: Answerer, judge: Judge, batch: int) -> Targets:
    """The model's own answer wherever the judge accepts it."""
    targets = given(prompts, answers)
    for places in left(targets, batch):
        asked = [prompts[place] for place in places]
        right = [answers[place] for place in places]
        proposed = answer(asked)
        accepted = judged(judge, asked, proposed, right)
        targets = replaced(targets, places, proposed, accepted, OWN)
    return targets


def reworded(targets: Targets, prompts: Sequence[Any], reword: Reworder, judge: Judge, batch: int) -> Targets:
    """Targets that are still as given in the model's words, wherever the judge accepts those."""
    for places in left(targets, batch):
        asked = [prompts[place] for place in places]
        right = [targets.answers[place] for place in places]
        proposed = reword(asked, right)
        accepted = judged(judge, asked, proposed, right)
        targets = replaced(targets, places, proposed, accepted, REWORDED)
    return targets
