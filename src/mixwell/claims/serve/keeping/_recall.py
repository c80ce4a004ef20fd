"""A small model that answers by looking far back: a text gives each key a value, a question names a key.

A token of the text is a key with its value; a question is one token, and so is its answer. Plain text asks a model of
this size to look back some dozen tokens alone, where every rule of keeping does as well.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mixwell.claims.claim import Untestable
from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel

KEYS, VALUES = 32, 8
QUESTIONS = 16  # of a text in training
STEPS, ROWS, RATE = 2000, 16, 3e-3
LEAST = 0.9  # share of answers that the whole cache has to get right
BLOCK = {"method": "experts.layers.swiglu", "hidden_dim": 64}


def texts(count: int, asked: int, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(texts [B, 32], questions [B, Q, 1], answers [B, Q, 1]); no key is asked twice."""
    keys = torch.rand(count, KEYS, generator=draws).argsort(1)
    values = torch.randint(VALUES, (count, KEYS), generator=draws)
    order = torch.rand(count, KEYS, generator=draws).argsort(1)
    chosen = order[:, :asked]
    first = KEYS * VALUES
    questions = first + keys.gather(1, chosen)
    answers = first + KEYS + values.gather(1, chosen)
    return keys * VALUES + values, questions.unsqueeze(-1), answers.unsqueeze(-1)


@functools.cache
def model() -> LanguageModel:
    """The model, trained once a process, from one seed; what is drawn anew for each seed are the texts."""
    draws = generator(0, "recall")
    vocabulary = KEYS * VALUES + KEYS + VALUES
    arch = ModelConfig(vocab_size=vocabulary, dim=64, num_layers=2, num_heads=2, max_positions=256,
                       channel_mixer=BLOCK)
    made = LanguageModel(arch, draws)
    _widen(made)
    optimizer = torch.optim.AdamW(made.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, STEPS)
    for _ in range(STEPS):
        loss = _loss(made.train(), draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    return made.eval()


@torch.no_grad()
def _widen(made: LanguageModel) -> None:
    """Wider starts than a decoder's usual ones, from which so small a one learns to look back sooner."""
    made.embed.weight.mul_(10)
    for layer in made.layers:
        layer.sequence_mixer.qkv.weight.mul_(4)


def _loss(made: LanguageModel, draws: torch.Generator) -> Tensor:
    """Mean nats of the answers to questions that follow a text."""
    text, questions, answers = texts(ROWS, QUESTIONS, draws)
    turns = torch.cat([questions, answers], -1)
    tokens = torch.cat([text, turns.flatten(1)], 1)
    logits = made(tokens[:, :-1]).logits_BTV
    of_answers = logits[:, KEYS::2]
    return torch.nn.functional.cross_entropy(of_answers.flatten(0, 1), answers.flatten())


def require_answers(shares: Tensor) -> None:
    """Raise `Untestable` where the whole cache does not answer nearly all questions."""
    least = float(shares.min())
    if least < LEAST:
        raise Untestable(f"the whole cache answers {least:.0%} of a question's texts rightly; expected {LEAST:.0%}")
