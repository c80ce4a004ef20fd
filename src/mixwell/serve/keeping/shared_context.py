"""Many questions to one long text: a cache that lets positions go is asked more than once.

**Equation:** a text and Q questions with answers. requests: the text alone is read, and the cache shrunk; each question
    is read behind a copy of that cache, so that none sees another. turns: text and first question are read together,
    which the rule sees; later questions follow in the same cache. In neither do answers that the model says enter the
    cache. The score of a turn: the share of texts whose answer is said word for word, greedily.
**Shapes:** token ids: texts [B, T], questions [B, Q, L], answers [B, Q, A].
**Reference:** Li et al. 2024, SCBench (2412.10319), section 3, and the authors' code.
**Differs:** texts, questions and answers are the caller's, where the paper has twelve tasks; all of one length.
**Fails when:** the whole cache does not answer nearly all: then losses say little. A rule is judged by `turns` and its
    first question alone: it has seen what is asked.
**Cost:** a pass over the text, and L + A tokens a question.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.lm.network import Network

Mode = Literal["requests", "turns"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the questions."""

    mode: Mode = "requests"

    def __post_init__(self) -> None:
        if self.mode not in ("requests", "turns"):
            raise ValueError(f"mode is {self.mode!r}; expected requests or turns")


def said(model: Network, cache: Any, logits_BV: Tensor, length: int) -> Tensor:
    """The likeliest continuation [B, length]; the cache is read on a copy."""
    own = copy.deepcopy(cache)
    last_B = logits_BV.argmax(-1)
    chosen = [last_B]
    for _ in range(length - 1):
        last_B1 = last_B.unsqueeze(1)
        logits_BV = model.next_logits(last_B1, own)
        last_B = logits_BV.argmax(-1)
        chosen.append(last_B)
    return torch.stack(chosen, 1)


@method(title="Questions to a shared context", paper="SCBench: A KV Cache-Centric Analysis of Long-Context Methods",
        year=2024)
@torch.inference_mode()
def shared_context(model: Network, text_BT: Tensor, questions_BQL: Tensor, answers_BQA: Tensor,
                   config: Config) -> Tensor:
    """The share of texts whose answer is right at each question, [Q]; the model's caches are as they were set.

    Raises `MixwellError` where questions and answers are not as many.
    """
    if questions_BQL.shape[:2] != answers_BQA.shape[:2]:
        raise MixwellError(f"questions {tuple(questions_BQL.shape)} and answers {tuple(answers_BQA.shape)} differ in "
                           "texts or number; expected an answer for each question.")
    model.eval()
    cache = model.new_cache()
    alone = config.mode == "requests"
    if alone:
        model.next_logits(text_BT, cache)
    questions = list(questions_BQL.unbind(1))
    if not alone:
        questions[0] = torch.cat([text_BT, questions[0]], 1)
    shares = []
    for question_BL, answer_BA in zip(questions, answers_BQA.unbind(1)):
        own = copy.deepcopy(cache) if alone else cache
        logits_BV = model.next_logits(question_BL, own)
        found_BA = said(model, own, logits_BV, answer_BA.shape[1])
        same_BA = found_BA == answer_BA
        right_B = same_BA.all(1)
        shares.append(right_B.double().mean())
    return torch.stack(shares)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A decoder of one layer, two texts and three questions to each."""
    from mixwell.lm.config import ModelConfig

    block = {"method": "experts.layers.swiglu", "hidden_dim": 8}
    arch = ModelConfig(vocab_size=20, dim=8, num_layers=1, num_heads=2, max_positions=64, channel_mixer=block)
    text_BT = torch.randint(20, (2, 12), generator=generator)
    questions_BQL = torch.randint(20, (2, 3, 2), generator=generator)
    answers_BQA = torch.randint(20, (2, 3, 1), generator=generator)
    return {"model": Network(arch, generator), "text_BT": text_BT, "questions_BQL": questions_BQL,
            "answers_BQA": answers_BQA, "config": Config()}
