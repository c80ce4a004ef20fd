"""Timings of the real thing with real shapes and random weights: a training step, a forward pass, a conversion.

Each returns plain data in seconds, bytes and FLOPs. A timed step takes about `patience_s` seconds at most; a larger
batch is scaled from fewer rows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mixwell.convert.calibration import asked
from mixwell.core import machine, registry
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.rng import generator
from mixwell.lm import receipt
from mixwell.lm.calibration import random_calibration
from mixwell.lm.conversion import convert
from mixwell.lm.model import LanguageModel
from mixwell.lm.tokenizer import Tokenizer
from mixwell.lm.training.freezing import Frozen
from mixwell.lm.training.optimizer import MasterAdamW
from mixwell.run.stages import Stage
from mixwell.run.stages.convert import LENGTH, ROWS, read_other

if TYPE_CHECKING:
    from mixwell.run.stages.train import Training

Timed = dict[str, float]
MOST_REPEATS = 60
PROMPT, NEW = 16, 16  # tokens read and written by a timed sample


def training(start: Checkpoint, rows: int, config: Training, patience_s: float) -> Timed:
    """Seconds and FLOPs a token, and peak bytes, of training steps of `rows` windows."""
    model = LanguageModel.from_checkpoint(start)
    with stepping(model, config) as step:
        flops = 3.0 * model.flops_per_token(config.seq_len)
        return _steps(step, rows, config.seq_len, flops, patience_s)


@contextmanager
def stepping(model: LanguageModel, config: Training) -> Iterator[Callable[[int], None]]:
    """A function that takes a training step of so many windows of made-up tokens, at a learning rate of 0."""
    model.train()
    model.checkpointing = config.checkpointing
    frozen = Frozen(model, config.frozen)
    optimizer = MasterAdamW(model, dtype=config.settled_dtype, betas=config.betas, eps=config.eps,
                            weight_decay=config.weight_decay)
    draws = generator(0, "calibrate")

    def step(count: int) -> None:
        tokens_BT = _tokens(model.config.vocab_size, count, config.seq_len + 1, draws)
        labels_B = torch.zeros(count, dtype=torch.int64)
        x_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
        loss = model.loss(x_BT, targets_BT, labels_B=labels_B, generator=draws)
        total = loss.nats if loss.aux is None else loss.nats + loss.aux
        total.backward()
        norm = float(optimizer.grad_norm())
        optimizer.step(0.0, norm, config.grad_clip)

    try:
        yield step
    finally:
        optimizer.release()
        frozen.release()


def reading(start: Checkpoint, rows: int, length: int, patience_s: float) -> Timed:
    """Seconds and FLOPs a token, and peak bytes, of predicting text."""
    model = LanguageModel.from_checkpoint(start).eval()

    @torch.no_grad()
    def step(count: int) -> None:
        tokens_BT = _tokens(model.config.vocab_size, count, length + 1)
        labels_B = torch.zeros(count, dtype=torch.int64)
        x_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
        model.loss(x_BT, targets_BT, labels_B=labels_B)

    return _steps(step, rows, length, model.flops_per_token(length), patience_s)


def writing(start: Checkpoint) -> Timed:
    """Seconds for each token of a sample."""
    model = LanguageModel.from_checkpoint(start).eval()
    tokens_BT = _tokens(model.config.vocab_size, 1, PROMPT)
    return {"seconds_per_token": _shortest(lambda: model.generate(tokens_BT, NEW)) / NEW}


def converting(before: Checkpoint, stage: Stage) -> Timed:
    """Seconds and peak bytes of a conversion and its receipt."""
    entry = registry.find(stage.method)
    rows = -(-asked(entry.module(), stage.config).tokens // LENGTH)
    text = random_calibration(before.arch, max(rows, 1), LENGTH, generator(0), read_other)

    def run() -> None:
        after = convert(entry, before, stage.config, generator(0), text)
        tokens_BT = _tokens(before.arch["vocab_size"], ROWS, LENGTH)
        receipt.measure(before, after, tokens_BT, stage.method)

    return once(run)


def tokenizing(sample: Sequence[str], vocab_size: int, path: str | None) -> Timed:
    """Seconds a byte of training the tokenizer (or reading it from `path`) and of encoding; bytes a token."""
    size = sum(len(text.encode()) for text in sample)
    start = time.perf_counter()
    tokenizer = Tokenizer.load(path) if path else Tokenizer.train(sample, vocab_size)
    learned = time.perf_counter()
    count = sum(map(len, tokenizer.encode_batch(list(sample))))
    encoded = time.perf_counter()
    return {"learn_seconds_per_byte": (learned - start) / size, "encode_seconds_per_byte": (encoded - learned) / size,
            "bytes_per_token": size / max(1, count)}


def sample_of(texts: Mapping[str, Sequence[str]], most: int = 100_000) -> list[str]:
    """Some text of every domain, `most` characters of each."""
    found = []
    for parts in texts.values():
        room = most
        for text in parts:
            if room <= 0:
                break
            found.append(text[:room])
            room -= len(text)
    return found


def once(run: Callable[[], Any]) -> Timed:
    """Seconds and peak bytes of one run."""
    machine.reset_peak()
    seconds = _shortest(run, repeats=1)
    return {"seconds": seconds, "peak_bytes": machine.peak_bytes()}


def _steps(step: Callable[[int], Any], rows: int, length: int, flops_per_token: float, patience_s: float) -> Timed:
    """What steps of `rows` rows take, from steps of as many as `patience_s` pays for, judged by one row."""
    step(1)  # warms the kernels up
    one_row = _shortest(lambda: step(1), repeats=1)
    timed = max(1, min(rows, int(patience_s / max(one_row, 1e-6))))
    machine.reset_peak()
    rest = machine.peak_bytes()
    seconds = _settled(_times(lambda: step(timed), 3, patience_s))
    peak = rest + (machine.peak_bytes() - rest) * rows / timed
    return {"seconds_per_token": seconds / (timed * length), "flops_per_token": flops_per_token, "peak_bytes": peak}


def _settled(times: Sequence[float]) -> float:
    """Their median without the first third: a training's first steps fill caches and take up to half longer."""
    warm = times[len(times) // 3:]
    return statistics.median(warm)


def _shortest(run: Callable[[], Any], repeats: int = 2) -> float:
    """Seconds of the shortest of a few runs: what the machine does when nobody disturbs it and the kernels are warm."""
    return min(_times(run, repeats, 0.0))


def _times(run: Callable[[], Any], least: int, patience_s: float) -> list[float]:
    """Seconds of `least` runs or more, until `patience_s` is spent: a neighbour disturbs some of them, seldom most."""
    times: list[float] = []
    while len(times) < least or (sum(times) < patience_s and len(times) < MOST_REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def _tokens(vocab_size: int, rows: int, length: int, draws: torch.Generator | None = None) -> Tensor:
    """Made-up ids; from `draws` others each time, so that experts get other numbers of rows, as in a training."""
    source = draws or generator(0)
    return torch.randint(0, vocab_size, (rows, length), generator=source)
