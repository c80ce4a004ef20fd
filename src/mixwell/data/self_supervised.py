"""Selective self-to-supervised tuning: the model's own answer, else its wording of the given one, else the given one.

**Equation:** t_i = a_i if J(x_i, a_i, y_i), else p_i if J(x_i, p_i, y_i), else y_i, with a_i the untouched model's
    answer to x_i and p_i its rewording of (x_i, y_i); then ordinary tuning on the pairs (x_i, t_i).
**Shapes:** N prompts x and N answers y of any kind (text, ids); N targets, and their source [N].
**Reference:** Gupta et al. 2025, Selective Self-to-Supervised Fine-Tuning (2502.08130).
**Differs:** the model, its rewording and the judge are handed in as functions. No code was released.
**Fails when:** prompts that the model cannot solve are dropped instead of kept with the given answer: then what is new
    is not learnt. Rewordings must be judged, too.
**Cost:** one answer and one judgement a prompt, one rewording and one more for those rejected, once, before the tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mixwell.core.method import method
from mixwell.data._answers import Answerer, Judge, Reworder, Targets, rehearsed, reworded
from mixwell.mixing import check_least


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of self-to-supervised tuning."""

    batch: int = 64  # prompts that the model is asked at a time

    def __post_init__(self) -> None:
        check_least(self, batch=1)


@method(title="Selective self-to-supervised tuning", year=2025,
        paper="Selective Self-to-Supervised Fine-Tuning for Generalization in Large Language Models")
def self_supervised(prompts: Sequence[Any], answers: Sequence[Any], config: Config, *, answer: Answerer,
                    reword: Reworder, judge: Judge) -> Targets:
    """A target for each prompt. Raises `MixwellError` where answers are missing."""
    own = rehearsed(prompts, answers, answer, judge, config.batch)
    return reworded(own, prompts, reword, judge, config.batch)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five sums; the model answers odd ones too high, and words a given sum as its negative where it is above 9."""
    prompts = torch.randint(10, (5, 2), generator=generator)
    right = prompts.sum(1)
    return {"prompts": prompts, "answers": right, "config": Config(batch=2), "answer": _off_by_one,
            "reword": _reworded, "judge": _same}


def _off_by_one(prompts: list[Any]) -> list[int]:
    sums = [int(prompt.sum()) for prompt in prompts]
    return [found + found % 2 for found in sums]


def _reworded(prompts: list[Any], answers: list[Any]) -> list[int]:
    large = [int(answer) * int(answer > 9) for answer in answers]
    return [-answer for answer in large]


def _same(prompt: Any, own: Any, gold: Any) -> bool:
    return abs(int(own)) == int(gold)
