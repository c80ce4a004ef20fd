"""Conversion and compression: one method on a checkpoint, with a receipt that is checked before the result is kept."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.convert.calibration import Calibration, Needs, asked
from mixwell.core import registry
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.files import digest
from mixwell.core.rng import generator
from mixwell.lm import adapted, receipt
from mixwell.lm import folder as folders
from mixwell.lm.calibration import TextCalibration, random_calibration
from mixwell.lm.conversion import account_of, convert
from mixwell.lm.data import TokenData
from mixwell.lm.model import LanguageModel
from mixwell.lm.receipt import Receipt
from mixwell.lm.spilled import Spill, beside
from mixwell.lm.streamed import streamed
from mixwell.run.paths import find_adapter, find_model
from mixwell.run.stages._parts import Job, Stage, read_model
from mixwell.run.stages.models import describe, folder_digest

ROWS, LENGTH = 8, 128  # of the held-out sample that a receipt is measured on
SKETCHED = 8  # random tokens of a window to look at, where only the result's shape counts


def converted(before: Checkpoint, method: str, config: Any, seed: int, tokens_BT: Tensor,
              calibration: Calibration | None = None,
              token_bytes_V: Tensor | None = None, spill: Spill | None = None) -> tuple[Checkpoint, Receipt]:
    """Apply the method and weigh the result; a broken promise raises `MixwellError`.

    tokens_BT: what the receipt is measured on. token_bytes_V: bytes of each token, where the tokens are text. spill:
    where the result waits for what becomes of it (`lm.conversion.convert`).
    """
    entry = registry.find(method)
    draws = generator(seed, method)
    after = convert(entry, before, config, draws, calibration, spill)
    promised = entry.module().promises(config)
    weighed = receipt.measure(before, after, tokens_BT, method, promised, token_bytes_V=token_bytes_V)
    account = account_of(before, after)
    weighed = replace(weighed, tensors=account)
    kept = replace(after, lineage=before.lineage, files=before.files)
    return kept, weighed.check()


def training_windows(data: TokenData, count: int, length: int = LENGTH) -> TextCalibration:
    """About `count` tokens of the text to train on as calibration text: windows spread over all domains alike."""
    domains = len(data.domains)
    shortest = min(data.count(domain, "train") for domain in data.domains)
    length = min(length, shortest)
    wanted = count / length / domains
    each = max(1, round(wanted))
    parts = []
    for domain in data.domains:
        stream = data.tokens(domain, "train")
        parts.append(_spread(stream, each, length))
    labels_N = torch.arange(domains)
    labels_N = labels_N.repeat_interleave(each)
    return TextCalibration(torch.cat(parts), labels_N, domains, models=read_other)


def _spread(stream: np.ndarray, count: int, length: int) -> Tensor:
    """Windows at equal distances over a stream, int64 [count, length]."""
    last = len(stream) - length
    starts = np.linspace(0, last, count)
    windows = []
    for start in starts.astype(int):
        stop = start + length
        windows.append(stream[start:stop])
    together = np.stack(windows)
    return torch.from_numpy(together.astype(np.int64))


def read_other(name: str) -> Checkpoint:
    """Another model that a conversion reads; `BASE+ADAPTER` is a base with an adapter in its weights."""
    base, adapter = _parts_of(name)
    before = folders.read(find_model(base))
    if adapter is None:
        return before
    model = LanguageModel.from_checkpoint(before, "fp32")
    there = adapted.put(find_adapter(adapter), model.eval())
    tokens_BT = torch.arange(SKETCHED).unsqueeze(0)
    seen_BT = tokens_BT % int(before.arch["vocab_size"])
    return adapted.merge(there, before, seen_BT).checkpoint


def _parts_of(name: str) -> tuple[str, str | None]:
    """A model's name, and that of the adapter that goes into it."""
    base, plus, adapter = name.partition("+")
    if not plus or Path(name).exists():
        return name, None
    return base, adapter


def convert_fingerprint(stage: Stage) -> str:
    """Digest of the other models and the files that the conversion reads."""
    needs = _needs(stage)
    read = [Path(name) for name in needs.files]
    for name in needs.models:
        base, adapter = _parts_of(name)
        read.append(find_model(base))
        if adapter is not None:
            read.append(find_adapter(adapter))
    found = [folder_digest(path) for path in read]
    if not found:
        return ""
    return digest(found)


def _needs(stage: Stage) -> Needs:
    module = registry.find(stage.method).module()
    return asked(module, stage.config)


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
    shards = job.inputs["tokens"] / "shards"
    data = TokenData.open(shards)
    before = read_model(job)
    job.progress(0.1, stage.method)
    needs = _needs(stage)
    calibration = training_windows(data, needs.tokens)
    sizes = data.token_bytes_V.astype(np.int64)
    bytes_V = torch.from_numpy(sizes)
    tokens_BT = held_out(data)
    place = job.folder / "model"
    with spilled_beside(stage.method, place) as spill:
        after, weighed = converted(before, stage.method, stage.config, stage.seed, tokens_BT, calibration, bytes_V,
                                   spill)
        job.progress(0.8, "write")
        told = weighed.to_dict()
        record = job.record(tokens=tokens_BT.numel(), receipt=told)
        noted = after.derive(record=record)
        folders.write(noted, place)
        told_of = describe(streamed(after))
    return {**told_of, "receipt": told}


def spilled_beside(method: str, place: str | Path | None) -> AbstractContextManager[Spill | None]:
    """Room beside `place` for what a conversion makes; other rooms' methods keep it in memory."""
    streams = method.startswith("convert.")
    return beside(place if streams else None)


def convert_shape(stage: Stage, before: Checkpoint | None, vocab_size: int) -> Checkpoint:
    """What the method makes of a model that is shaped like its input."""
    assert before is not None
    draws = generator(0)
    entry = registry.find(stage.method)
    sketch = random_calibration(before.arch, ROWS, SKETCHED, draws, read_other)
    return convert(entry, before, stage.config, draws, sketch)
