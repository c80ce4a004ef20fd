"""Instruction tuning of mixtures: a stage of many instructed tasks gains a mixture more than a dense model as active.

Paper: Mixture-of-Experts Meets Instruction Tuning:A Winning Combination for Large Language Models; on the method moe.
Tried: decoders of two layers trained on copied strings, one with a dense block of width 32, one with eight experts of
32, one a token; tuned to a task that none has seen on 64 examples, at once or behind 100 steps of four instructed
tasks. What the stage takes off the loss, in nats a letter of held-out answers; the tuning's rate is chosen. Beside:
with the router frozen in both. Against it: a gain of the mixture's that is no larger.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.strings import WORDS, Rows, drawn, fitted, model
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel

STAGE, HELD = ("copy", "next", "mirror", "rotate"), ("reverse",)
DENSE = {"method": "swiglu", "hidden_dim": 32}
SPARSE = {"method": "moe", "num_experts": 8, "hidden_dim": 32, "router": {"method": "top_k", "k": 1},
          "balance": {"switch": 0.01}}
BLOCKS = {"dense": DENSE, "sparse": SPARSE}


def anything(tasks_B: Tensor, draws: torch.Generator) -> Tensor:
    """A word that says nothing of the task [B, 1]."""
    count = len(tasks_B)
    words = torch.randint(8, (count, 1), generator=draws)
    return WORDS + words


def held(tasks_B: Tensor, draws: torch.Generator) -> Tensor:
    """The word of the task that is held out [B, 1]."""
    word = WORDS + len(STAGE)
    count = len(tasks_B)
    return torch.full((count, 1), word)


def frozen(network: LanguageModel, freeze: bool) -> LanguageModel:
    """The network, its routers left out of training where they are to be."""
    for name, parameter in network.named_parameters():
        if freeze and ".router." in name:
            parameter.requires_grad_(False)
    return network


@functools.cache
def trained(seed: int, block: str, staged: bool, freeze: bool) -> Checkpoint:
    """The decoder before it is tuned, behind the stage of instructed tasks or without it."""
    if not staged:
        draws = generator(seed, "pretraining")
        texts = [drawn(("copy",), 32, draws, said=anything) for _ in range(60)]
        network = fitted(model(seed, channel_mixer=BLOCKS[block]), texts, 1e-2)
    else:
        before = trained(seed, block, False, False)
        draws = generator(seed, "stage")
        tasks = [drawn(STAGE, 32, draws) for _ in range(100)]
        start = frozen(LanguageModel.from_checkpoint(before), freeze)
        network = fitted(start, tasks, 1e-2)
    found: Checkpoint = network.to_checkpoint()
    return found


def batches(few: Rows, seed: int) -> Iterator[Rows]:
    """The examples in batches, so many times over."""
    draws = generator(seed, "batches")
    for _ in range(40):
        chosen = torch.randint(len(few.tasks), (16,), generator=draws)
        yield few.of(chosen)


def loss(seed: int, start: Checkpoint, lr: float, freeze: bool) -> float:
    """Nats a letter on the task held out, behind tuning."""
    few = drawn(HELD, 64, generator(seed, "few"), said=held)
    network: Any = frozen(LanguageModel.from_checkpoint(start), freeze)
    fitted(network, batches(few, seed), lr)
    test = drawn(HELD, 512, generator(seed, "test"), said=held)
    with torch.no_grad():
        found = network.loss(test.tokens[:, :-1], test.targets)
    return float(found.nats)


def gain(bench: Bench, seed: int, *, lr: float, block: str, freeze: bool = False) -> dict[str, float]:
    """What the stage takes off the loss, and minus the loss behind it."""
    plain = trained(seed, block, False, False)
    taught = trained(seed, block, True, freeze)
    direct = loss(seed, plain, lr, freeze)
    staged = loss(seed, taught, lr, freeze)
    return {"gain": direct - staged, "quality": -staged}


RATES = {"lr": (3e-3, 1e-2, 3e-2)}
CLAIM = Claim("A stage of instructed tasks gains a mixture more than a dense model.", "nats a letter",
              quantity="gain", lower_is_better=False, tuned_by="quality",
              sides={"method": Side(gain, {"block": "sparse"}, RATES),
                     "baseline": Side(gain, {"block": "dense"}, RATES),
                     "router frozen": Side(gain, {"block": "sparse", "freeze": True}, RATES)})
