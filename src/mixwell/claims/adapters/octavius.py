"""Octavius: where tasks conflict, low-rank experts gated by the instruction do better than one LoRA of equal size.

Paper: Octavius: Mitigating Task Interference in MLLMs via LoRA-MoE.
Tried: a decoder trained on four tasks on strings, named by three words of the task's own six, of which two are
another's; frozen, and adapted for 150 steps to four other tasks under the same words: four experts of rank 2, two at a
time, against a LoRA of rank 8 on the same matrices. Share of answers that are wholly right. Beside: how far the gate
says the task (mutual information of task and strongest expert, as a share of the tasks' entropy). Against it: a share
that is no higher.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from mixwell.adapters import lora, octavius
from mixwell.adapters.attached import Attached, attach
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, Untestable
from mixwell.claims.strings import COLON, WORDS, Rows, drawn, fitted, model, share_right
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel

TRAINED = ("copy", "next", "rotate", "mirror")
NEW = ("reverse", "half", "mirror", "copy")
SAID, OWN = 3, 6  # words of an instruction, of a task; the last two are the next task's first
PRETRAINED, STEPS, BATCH = 250, 150, 32


def words(tasks_B: Tensor, draws: torch.Generator) -> Tensor:
    """Three different words of each row's task [B, 3]."""
    chances = torch.ones(len(tasks_B), OWN)
    chosen = torch.multinomial(chances, SAID, generator=draws)
    first = 4 * tasks_B[:, None]
    places = (first + chosen) % 16
    return WORDS + places


def some(names: tuple[str, ...], count: int, draws: torch.Generator) -> Rows:
    """Rows of tasks by these names."""
    return drawn(names, count, draws, said=words)


@functools.cache
def base(seed: int) -> Checkpoint:
    """The decoder that both sides start from; `Untestable` where it has learnt nothing of its tasks."""
    draws = generator(seed, "known")
    batches = (some(TRAINED, BATCH, draws) for _ in range(PRETRAINED))
    network = fitted(model(seed), batches, 1e-2)
    test = some(TRAINED, 256, draws)
    known = share_right(network, test)
    if known < 0.1:
        raise Untestable(f"the base answers {known:.0%} of what it was trained on; expected 10 %")
    return network.to_checkpoint()


def measure(bench: Bench, seed: int, *, lr: float, method: Any, config: Any) -> dict[str, float]:
    """Share right after adaptation, and how far the gate says the task where there is one."""
    network = LanguageModel.from_checkpoint(base(seed))
    there = attach(method, network, ["qkv", "out"], config, generator(seed, "adapter"))
    draws = generator(seed, "new")
    batches = (some(NEW, BATCH, draws) for _ in range(STEPS))
    fitted(network, batches, lr)
    rows = some(NEW, 512, draws)
    found = {"accuracy": share_right(network, rows)}
    if method is octavius.Octavius:
        found["gate"] = told(there, rows)
    return found


@torch.no_grad()
def told(there: Attached, rows: Rows) -> float:
    """Mutual information of task and strongest expert over the tasks' entropy."""
    first = next(iter(there.adapters.values()))
    there.model(rows.tokens)
    kept = first.context.kept
    *_, gates_TE = kept[first.router]
    experts = gates_TE.shape[-1]
    gates_BSE = gates_TE.view(*rows.tokens.shape, experts)
    last = gates_BSE[:, -1]
    strongest = last.argmax(-1)
    return shared(rows.tasks, strongest, len(NEW), experts)


def shared(tasks_B: Tensor, experts_B: Tensor, tasks: int, experts: int) -> float:
    """Mutual information over the first one's entropy."""
    places = tasks_B * experts + experts_B
    counts = torch.bincount(places, minlength=tasks * experts)
    shares = counts / len(places)
    joint = shares.view(tasks, experts)
    apart = joint.sum(1, keepdim=True) * joint.sum(0)
    there = joint > 0
    own, alone = joint[there], apart[there]
    logs = (own / alone).log()
    nats = own @ logs
    return float(nats) / math.log(tasks)


RATES = {"lr": (1e-2, 2e-2, 4e-2)}
GATED = {"method": octavius.Octavius, "config": octavius.Config(num_experts=4, rank=2, until=COLON)}
PLAIN = {"method": lora.LoRA, "config": lora.Config(rank=8, alpha=8.0)}
CLAIM = Claim("Experts gated by the instruction beat one LoRA of equal size on tasks that conflict.",
              "share of answers that are right", quantity="accuracy", lower_is_better=False,
              sides={"method": Side(measure, GATED, RATES), "baseline": Side(measure, PLAIN, RATES)})
