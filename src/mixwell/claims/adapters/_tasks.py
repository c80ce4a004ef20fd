"""Decoders that know three tasks on strings, adapted to four new ones: to move letters on by four distances."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from mixwell.adapters.attached import attach
from mixwell.claims.adapters._losses import nats
from mixwell.claims.premise import Untestable
from mixwell.claims.strings import KNOWN, LETTERS, WORDS, Rows, drawn, fitted, joined, model, share_right
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel

NEW = (2, 4, 7, 9)  # how far each new task goes on in the alphabet, which ends where it begins
KNOWING, STEPS, BATCH = 250, 150, 32
NATS = "nats a letter of the answers to new strings"
MIXTURE = {"method": "moe", "num_experts": 4, "hidden_dim": 32, "router": {"method": "top_k", "k": 2},
           "balance": {"switch": 0.01}}


@functools.cache
def mixture(seed: int) -> Checkpoint:
    """A mixture of four experts that knows the tasks of `KNOWN`; `Untestable` where it answers under 70 % of them."""
    draws = generator(seed, "known")
    rows = (drawn(KNOWN, BATCH, draws) for _ in range(KNOWING))
    begun = model(seed, channel_mixer=MIXTURE)
    network = fitted(begun, rows, 1e-2)
    test = drawn(KNOWN, 256, draws)
    known = share_right(network, test)
    if known < 0.7:
        raise Untestable(f"the base answers {known:.0%} of what it was trained on; expected 70 %")
    found: Checkpoint = network.to_checkpoint()
    return found


def gone_on(count: int, draws: torch.Generator) -> Rows:
    """Rows of the new tasks, each named by a word that the base has not seen."""
    tasks = torch.randint(len(NEW), (count,), generator=draws)
    x = torch.randint(LETTERS, (count, 3), generator=draws)
    steps = torch.tensor(NEW)
    moved = x + steps[tasks, None]
    y = moved % LETTERS
    unseen = WORDS + len(KNOWN)
    words = unseen + tasks
    return joined(words[:, None], x, y, tasks)


def learnt(before: Checkpoint, seed: int, method: Any, config: Any, targets: Sequence[str] | None,
           lr: float) -> dict[str, float]:
    """Nats a letter of the new tasks once adapters have learnt them, share right, and the numbers that were trained."""
    network = LanguageModel.from_checkpoint(before)
    there = attach(method, network, targets, config, generator(seed, "adapter"))
    draws = generator(seed, "new")
    batches: list[Rows] = [gone_on(BATCH, draws) for _ in range(STEPS)]
    fitted(network, batches, lr)
    test = gone_on(512, draws)
    found = {"nats": nats(network, test)}
    found["right"] = share_right(network, test)
    found["numbers"] = float(there.num_parameters)
    return found
