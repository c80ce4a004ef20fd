"""Conversion and compression: one method on a checkpoint, with a receipt that is checked before the result is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.convert.calibration import Calibration, asked
from mixwell.core import registry
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.files import digest
from mixwell.core.rng import generator
from mixwell.lm import folder as folders
from mixwell.lm import receipt
from mixwell.lm.calibration import TextCalibration, random_calibration
from mixwell.lm.conversion import account_of, convert
from mixwell.lm.data import TokenData
from mixwell.lm.model import LanguageModel
from mixwell.lm.receipt import Receipt
from mixwell.run.paths import find_model
from mixwell.run.stages._parts import Job, Stage, read_model
from mixwell.run.stages.models import describe, folder_digest

ROWS, LENGTH = 8, 128  # of the held-out sample that a receipt is measured on
SKETCHED = 8  # random tokens of a window to look at, where only the result's shape counts


def converted(before: Checkpoint, method: str, config: Any, seed: int, tokens_BT: Tensor,
              calibration: Calibration | None = None,
              token_bytes_V: Tensor | None = None) -> tuple[Checkpoint, Receipt]:
    """Apply the method and weigh the result; a broken promise raises `MixwellError`.

    tokens_BT: what the receipt is measured on. token_bytes_V: bytes of each token, where the tokens are text.
    """
    entry = registry.find(method)
    after = convert(entry, before, config, generator(seed, method), calibration)
    promised = entry.module().promises(config)
    weighed = receipt.measure(before, after, tokens_BT, method, promised, token_bytes_V=token_bytes_V)
    weighed = replace(weighed, tensors=account_of(before, after))
    return replace(after, lineage=before.lineage, files=before.files), weighed.check()


def training_windows(data: TokenData, count: int, length: int = LENGTH) -> TextCalibration:
    """About `count` tokens of the text to train on as calibration text: windows spread over all domains alike."""
    length = min(length, min(data.count(domain, "train") for domain in data.domains))
    each = max(1, round(count / length / len(data.domains)))
    windows, labels = [], []
    for number, domain in enumerate(data.domains):
        stream = data.tokens(domain, "train")
        last = len(stream) - length
        for start in np.linspace(0, last, each).astype(int):
            windows.append(stream[start : start + length].astype(np.int64))
            labels.append(number)
    tokens_NS = torch.from_numpy(np.stack(windows))
    return TextCalibration(tokens_NS, torch.tensor(labels), len(data.domains), models=read_other)


def read_other(name: str) -> Checkpoint:
    """Another model that a conversion reads."""
    return folders.read(find_model(name))


def convert_fingerprint(stage: Stage) -> str:
    """Digest of the other models and the files that the conversion reads."""
    needs = asked(registry.find(stage.method).module(), stage.config)
    found = [folder_digest(find_model(name)) for name in needs.models]
    found += [folder_digest(Path(name)) for name in needs.files]
    return digest(found) if found else ""


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
    data = TokenData.open(job.inputs["tokens"] / "shards")
    before = read_model(job)
    job.progress(0.1, stage.method)
    needs = asked(registry.find(stage.method).module(), stage.config)
    calibration = training_windows(data, needs.tokens)
    bytes_V = torch.from_numpy(data.token_bytes_V.astype(np.int64))
    tokens_BT = held_out(data)
    after, weighed = converted(before, stage.method, stage.config, stage.seed, tokens_BT, calibration, bytes_V)
    job.progress(0.8, "write")
    record = job.record(tokens=tokens_BT.numel(), receipt=weighed.to_dict())
    folders.write(after.derive(record=record), job.folder / "model")
    return {**describe(LanguageModel.from_checkpoint(after)), "receipt": weighed.to_dict()}


def convert_shape(stage: Stage, before: Checkpoint | None, vocab_size: int) -> Checkpoint:
    """What the method makes of a model that is shaped like its input."""
    assert before is not None
    draws = generator(0)
    sketch = random_calibration(before.arch, ROWS, SKETCHED, draws, read_other)
    return convert(registry.find(stage.method), before, stage.config, draws, sketch)
