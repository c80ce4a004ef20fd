"""Conversion and compression: one method on a checkpoint, with a receipt that is checked before the result is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.core import registry
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.rng import generator
from mixwell.lm import folder as folders
from mixwell.lm import receipt
from mixwell.lm.data import TokenData
from mixwell.lm.model import LanguageModel
from mixwell.lm.receipt import Receipt
from mixwell.run.stages._parts import Job, Stage, read_model
from mixwell.run.stages.models import describe

ROWS, LENGTH = 8, 128  # of the held-out sample that a receipt is measured on


def converted(before: Checkpoint, method: str, config: Any, seed: int, tokens_BT: Tensor) -> tuple[Checkpoint, Receipt]:
    """Apply the method and weigh the result; a broken promise raises `MixwellError`."""
    entry = registry.find(method)
    after = entry.load()(before, config, generator(seed, method))
    weighed = receipt.measure(before, after, tokens_BT, method, entry.module().promises(config))
    return replace(after, lineage=before.lineage, files=before.files), weighed.check()


def held_out(data: TokenData, rows: int = ROWS, length: int = LENGTH) -> Tensor:
    """Held-out windows from all domains in turn, int64 [B, T]; shorter where the text is."""
    return windows_of(data, "held", rows, length)


def windows_of(data: TokenData, split: str, rows: int = ROWS, length: int = LENGTH) -> Tensor:
    """As `held_out`, of a split: `train` or `held`."""
    length = min(length, min(data.count(domain, split) for domain in data.domains))
    streams = [data.tokens(domain, split) for domain in data.domains]
    windows = []
    for row in range(max(rows, len(streams))):
        stream = streams[row % len(streams)]
        start = (row // len(streams)) * length % max(1, len(stream) - length + 1)
        windows.append(stream[start : start + length].astype(np.int64))
    return torch.from_numpy(np.stack(windows))


def run_convert(job: Job) -> dict[str, Any]:
    """Convert, weigh on held-out tokens, check, write."""
    stage = job.stage
    tokens_BT = held_out(TokenData.open(job.inputs["tokens"] / "shards"))
    before = read_model(job)
    job.progress(0.1, stage.method)
    after, weighed = converted(before, stage.method, stage.config, stage.seed, tokens_BT)
    job.progress(0.8, "write")
    record = job.record(tokens=tokens_BT.numel(), receipt=weighed.to_dict())
    folders.write(after.derive(record=record), job.folder / "model")
    return {**describe(LanguageModel.from_checkpoint(after)), "receipt": weighed.to_dict()}


def convert_shape(stage: Stage, before: Checkpoint | None, vocab_size: int) -> Checkpoint:
    """What the method makes of a model that is shaped like its input."""
    assert before is not None
    return registry.find(stage.method).load()(before, stage.config, generator(0))
