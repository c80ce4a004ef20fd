"""Selective self-rehearsal: a model is tuned on its own answer where a judge accepts it, else on the given one.

**Equation:** t_i = a_i if J(x_i, a_i, y_i) else y_i, with a_i the untouched model's answer to x_i; then ordinary tuning
    on the pairs (x_i, t_i).
**Shapes:** N prompts x and N answers y of any kind (text, ids); N targets, and their source [N].
**Reference:** Gupta et al. 2024, Selective Self-Rehearsal (2409.04787).
**Differs:** the model and the judge are handed in as functions; the paper's judge is a large model.
**Fails when:** the judge accepts wrong answers, which turns it into noise; near no acceptance it is ordinary tuning,
    and near full acceptance it teaches nothing: look at `Targets.share`. Answers must keep their end of text.
**Cost:** one answer and one judgement a prompt, once, before the tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mixwell.core.method import method
from mixwell.data._answers import Answerer, Judge, Targets, rehearsed
from mixwell.mixing import check_least


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of self-rehearsal."""

    batch: int = 64  # prompts that the model is asked at a time

    def __post_init__(self) -> None:
        check_least(self, batch=1)


@method(title="Selective self-rehearsal", year=2024,
        paper="Selective Self-Rehearsal: A Fine-Tuning Approach to Improve Generalization in Large Language Models")
def self_rehearsal(prompts: Sequence[Any], answers: Sequence[Any], config: Config, *, answer: Answerer,
                   judge: Judge) -> Targets:
    """A target for each prompt. Raises `MixwellError` where answers are missing."""
    return rehearsed(prompts, answers, answer, judge, config.batch)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five sums, a model that adds one too much to odd ones, and a judge that compares."""
    prompts = torch.randint(10, (5, 2), generator=generator)
    right = prompts.sum(1)
    return {"prompts": prompts, "answers": right, "config": Config(batch=2), "answer": _off_by_one, "judge": _same}


def _off_by_one(prompts: list[Any]) -> list[int]:
    sums = [int(prompt.sum()) for prompt in prompts]
    return [found + found % 2 for found in sums]


def _same(prompt: Any, own: Any, gold: Any) -> bool:
    return int(own) == int(gold)
