"""HyperAdapter: with few examples of each task, adapters written from prototypes beat an adapter a task.

Paper: Prototype-based HyperAdapter for Sample-Efficient Multi-task Tuning.
Tried: a decoder trained on three tasks on strings, named by a word; frozen, and adapted to the same three named by the
label alone, 4 examples of each: a HyperAdapter on all of them, against a bottleneck adapter of the same width for each
task, trained on as many rows in sum. Share of answers to new strings that are wholly right. Beside: the same network
with task codes alone, without the two contrastive losses. Against it: a share that is no higher.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mixwell.adapters import hyper_adapter, mosa
from mixwell.adapters.attached import attach
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.strings import KNOWN, WORDS, Rows, base, drawn, fitted, share_right
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel

SHOTS, STEPS, RANK = 4, 120, 8
UNSAID = WORDS + len(KNOWN)  # a word that the base has not seen


def rows(seed: int, count: int, name: str) -> Rows:
    """So many rows of each task, none of which is named."""
    draws = generator(seed, name)
    parts = []
    for task, own in enumerate(KNOWN):
        found = drawn((own,), count, draws, said=unsaid)
        parts.append(found._replace(tasks=torch.full((count,), task)))
    tokens = torch.cat([part.tokens for part in parts])
    tasks = torch.cat([part.tasks for part in parts])
    return Rows(tokens, parts[0].answer, tasks)


def unsaid(tasks_B: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """The same word for every row [B, 1]."""
    return torch.full((len(tasks_B), 1), UNSAID)


def batches(few: Rows, steps: int, draws: torch.Generator) -> Iterator[Rows]:
    """Batches of 16 rows."""
    for _ in range(steps):
        yield few.of(torch.randint(len(few.tasks), (16,), generator=draws))


def written(bench: Bench, seed: int, *, lr: float, contrast: float = 0.1) -> float:
    """Share right with one HyperAdapter."""
    network = LanguageModel.from_checkpoint(base(seed))
    config = hyper_adapter.Config(num_tasks=len(KNOWN), rank=RANK, code=16, hidden=32, instances=contrast,
                                  prototypes=contrast)
    attach(hyper_adapter.HyperAdapter, network, None, config, generator(seed, "adapter"))
    few = rows(seed, SHOTS, "few")
    fitted(network, batches(few, STEPS, generator(seed, "batches")), lr, labelled=True)
    return share_right(network, rows(seed, 128, "test"), labelled=True)


def apart(bench: Bench, seed: int, *, lr: float) -> float:
    """Mean share right with an adapter for each task."""
    few, test = rows(seed, SHOTS, "few"), rows(seed, 128, "test")
    draws = generator(seed, "batches")
    found = []
    for task in range(len(KNOWN)):
        network = LanguageModel.from_checkpoint(base(seed))
        config = mosa.Config(modules=1, rank=RANK, scale=1.0)
        attach(mosa.MoSA, network, None, config, generator(seed, "adapter", task))
        own = few.of(few.tasks == task)
        fitted(network, batches(own, STEPS // len(KNOWN), draws), lr)
        found.append(share_right(network, test.of(test.tasks == task)))
    return sum(found) / len(found)


RATES = {"lr": (1e-3, 3e-3, 1e-2, 3e-2)}
CLAIM = Claim("Adapters written from prototypes need fewer examples than an adapter a task.",
              "share of answers that are right", lower_is_better=False,
              sides={"method": Side(written, {}, RATES), "baseline": Side(apart, {}, RATES),
                     "codes alone": Side(written, {"contrast": 0.0}, RATES)})
