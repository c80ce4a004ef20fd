"""Soft-MoA: adapters on soft slots do better than one adapter of as many numbers.

Paper: Efficient Fine-tuning of Audio Spectrogram Transformers via Soft Mixture of Adapters.
Tried: a decoder that knows three tasks on strings, frozen, and adapted to moving letters on by four distances, each
named by a word: four adapters of rank 2 on a slot each beside every block, against one adapter of rank 8, rates of
their own. Of the answer the first letter alone is asked for, the last token of a row, so that slots may hold all before
it. Cross-entropy of new answers. Against it: one that is no lower.
"""

from __future__ import annotations

from typing import Any

from mixwell.adapters import mosa
from mixwell.adapters import soft_moa as method
from mixwell.adapters.attached import attach
from mixwell.claims.adapters._losses import nats
from mixwell.claims.adapters._tasks import BATCH, NATS, gone_on
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.strings import Rows, base, fitted
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel

STEPS = 400


def single(rows: Rows) -> Rows:
    """Rows that end with the first letter of their answer."""
    first = rows.tokens[:, : rows.answer + 1]
    return Rows(first, rows.answer, rows.tasks)


def measure(bench: Bench, seed: int, *, lr: float, kind: Any, config: Any) -> float:
    """Nats of the answers once adapters have learnt the tasks."""
    network = LanguageModel.from_checkpoint(base(seed))
    attach(kind, network, None, config, generator(seed, "adapter"))
    draws = generator(seed, "new")
    batches = [single(gone_on(BATCH, draws)) for _ in range(STEPS)]
    fitted(network, batches, lr)
    test = single(gone_on(512, draws))
    return nats(network, test)


GRID = {"lr": (3e-3, 1e-2, 3e-2, 1e-1)}
SLOTS = {"kind": method.SoftMoA, "config": method.Config(num_experts=4, rank=2)}
PLAIN = {"kind": mosa.MoSA, "config": mosa.Config(modules=1, rank=8, scale=1.0)}
CLAIM = Claim("Adapters on soft slots do better than one adapter of as many numbers.", NATS,
              sides={"method": Side(measure, SLOTS, GRID), "baseline": Side(measure, PLAIN, GRID)})
