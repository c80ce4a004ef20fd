"""RAFT: learning from one's best samples round by round brings more reward than one round of as many samples.

Paper: LMFlow: An Extensible Toolkit for Finetuning and Inference of Large Foundation Models.
Tried: a decoder trained on three tasks on strings, LoRA of rank 8 beside it; the reward is the share of its answer's
letters from the lower half, asked for by a word that it has not seen. Six rounds of 16 prompts, eight samples each and
the best learned from, against one round of 96; mean reward of fresh samples. Beside: the decoder untuned. Against it: a
reward that is no higher.
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from mixwell.adapters import lora
from mixwell.adapters.attached import attach
from mixwell.adapters.protocols.decoder import Decoder
from mixwell.adapters.protocols.raft import Config, raft
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.strings import KNOWN, LETTERS, WORDS, base, drawn
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel

ROUNDS, PROMPTS, LENGTH = 6, 16, 3
UNSAID = WORDS + len(KNOWN)


def low(prompt: Tensor, answer: Tensor) -> float:
    """Share of letters from the lower half."""
    good = answer < LETTERS // 2
    return float(good.float().mean())


def asked(seed: int, name: str, count: int) -> list[Tensor]:
    """Prompts under a word that the decoder has not seen, so that it is of several minds."""
    rows = drawn(KNOWN, count, generator(seed, name), said=unsaid)
    prompts = rows.tokens[:, : rows.answer]
    return list(prompts)


def unsaid(tasks_B: Tensor, draws: torch.Generator) -> Tensor:
    """The same word for every row [B, 1]."""
    return torch.full((len(tasks_B), 1), UNSAID)


def rewarded(bench: Bench, seed: int, *, rounds: int, lr: float) -> float:
    """Mean reward of fresh samples behind so many rounds, all of them on as many prompts in sum."""
    network = LanguageModel.from_checkpoint(base(seed))
    config_of = lora.Config(rank=8, alpha=16.0)
    attach(lora.LoRA, network, None, config_of, generator(seed, "adapter"))
    draws = generator(seed, "samples")
    decoder = Decoder(network, LENGTH, draws, lr=lr, epochs=4, batch=8)
    if rounds:
        count = ROUNDS * PROMPTS
        config = Config(rounds=rounds, prompts=count // rounds)
        prompts = asked(seed, "prompts", count)
        raft(prompts, config, generator(seed, "order"), draw=decoder.draw, reward=low, learn=decoder.learn)
    fresh = asked(seed, "fresh", 256)
    samples = decoder.draw(fresh, 1)
    found = [low(prompt, own) for prompt, (own,) in zip(fresh, samples)]
    return statistics.fmean(found)


RATES = {"lr": (1e-3, 3e-3, 1e-2)}
CLAIM = Claim("Rounds of learning from the best samples beat one round of as many.", "mean reward",
              lower_is_better=False,
              sides={"method": Side(rewarded, {"rounds": ROUNDS}, RATES),
                     "baseline": Side(rewarded, {"rounds": 1}, RATES),
                     "untuned": Side(rewarded, {"rounds": 0, "lr": 1e-3})})
