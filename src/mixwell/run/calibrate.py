"""What a run will take, from a few seconds of the real thing on this machine: real shapes, real code, random weights.

Every measurement is kept in `$XDG_CACHE_HOME/mixwell/calibration.json` under a digest of the shape, the machine, the
threads, the torch version and mixwell's source, so that it is made once.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mixwell.core import machine, registry
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.files import digest, read_json, write_json
from mixwell.core.rng import generator
from mixwell.lm import checkpoint, receipt
from mixwell.lm.model import LanguageModel
from mixwell.lm.tokenizer import Tokenizer
from mixwell.lm.training.optimizer import MasterAdamW
from mixwell.run.keys import source_digest
from mixwell.run.stages import KINDS, Prediction, Stage
from mixwell.run.stages.convert import LENGTH, ROWS

if TYPE_CHECKING:
    from mixwell.run.stages.evaluate import EvaluateConfig
    from mixwell.run.stages.train import Training

Measured = dict[str, float]
PATIENCE_S = 1.0  # aim of one timed step; a larger batch is scaled from fewer rows


def cache_file() -> Path:
    """Where measurements are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixwell" / "calibration.json"


class Calibrator:
    """Measures what the stages of one recipe need, when they ask for it."""

    def __init__(self, stages: Sequence[Stage], threads: int) -> None:
        self.stages = {stage.id: stage for stage in stages}
        self._salt = [machine.cpu_model(), threads, metadata.version("torch"), source_digest()]
        self._shapes: dict[str, Checkpoint] = {}

    def predict(self, stage: Stage) -> Prediction:
        """What the stage will take. A shape that cannot be is told here, before anything runs."""
        try:
            return KINDS[stage.kind].predict(stage, self)
        except MixwellError as error:
            raise type(error)(f"stage {stage.id}: {error}") from error

    def evaluation(self, model_id: str, config: EvaluateConfig) -> Prediction:
        """What evaluating the model after a stage will take."""
        tokens = self.held_tokens(config.max_tokens)
        found = self.reading(model_id, config.batch_size, config.seq_len)
        return Prediction(seconds=tokens * found["seconds_per_token"], tokens=tokens, peak_bytes=found["peak_bytes"],
                          flops=tokens * found["flops_per_token"])

    def kept(self, what: str, settings: Any, measure: Callable[[], Measured]) -> Measured:
        """The measurement `what` at `settings`, from the cache where it was made before."""
        key = digest([what, settings, self._salt])
        found = _read_cache().get(key)
        if isinstance(found, dict):
            return found
        found = measure()
        with contextlib.suppress(MixwellError, OSError):  # a home that cannot be written to costs a second each run
            write_json(cache_file(), {**_read_cache(), key: found})
        return found

    def shape_key(self, model_id: str) -> Any:
        """What decides the shape of a model stage's weights."""
        stage = self.stages[model_id]
        parent = stage.inputs.get("model")
        if stage.kind == "train" and parent:
            return self.shape_key(parent)
        vocabulary = self.vocab_size() if stage.kind == "build" else 0
        outside = KINDS[stage.kind].fingerprint(stage)
        return [stage.method, stage.plain_config(), vocabulary, outside, self.shape_key(parent) if parent else None]

    def vocab_size(self) -> int:
        """Ids of the recipe's tokenizer, before there is one."""
        config = self.stages["tokenizer"].config
        return Tokenizer.load(config.path).vocab_size if config.path else config.vocab_size

    def shape(self, model_id: str) -> Checkpoint:
        """A checkpoint shaped like the one that the stage will make, with weights that mean nothing."""
        key = digest(self.shape_key(model_id))
        if key not in self._shapes:
            self._shapes[key] = self._shape(self.stages[model_id])
        return self._shapes[key]

    def _shape(self, stage: Stage) -> Checkpoint:
        if stage.kind == "build":
            return LanguageModel(stage.config.model(self.vocab_size()), generator(0)).to_checkpoint()
        if stage.kind == "load":
            return checkpoint.read(stage.config.path)
        if stage.kind == "train":
            return self.shape(stage.inputs["model"])
        return registry.find(stage.method).load()(self.shape(stage.inputs["model"]), stage.config, generator(0))

    def training(self, model_id: str, config: Training) -> Measured:
        """Seconds and FLOPs a token, and peak memory, of training this model."""
        rows = config.batch_size // config.accumulate
        settings = [self.shape_key(model_id), rows, config.seq_len, config.dtype]
        return self.kept("training", settings, lambda: _time_training(self.shape(model_id), rows, config))

    def reading(self, model_id: str, rows: int, length: int) -> Measured:
        """Seconds and FLOPs a token, and peak memory, of evaluating this model."""
        settings = [self.shape_key(model_id), rows, length]
        return self.kept("reading", settings, lambda: _time_reading(self.shape(model_id), rows, length))

    def writing(self, model_id: str) -> Measured:
        """Seconds for each token of a sample."""
        return self.kept("writing", self.shape_key(model_id), lambda: _time_writing(self.shape(model_id)))

    def converting(self, stage: Stage) -> Measured:
        """Seconds and peak memory of a conversion and its receipt."""
        before = stage.inputs["model"]
        settings = [self.shape_key(before), stage.method, stage.plain_config()]
        return self.kept("converting", settings, lambda: _time_converting(self.shape(before), stage))

    def building(self, stage: Stage) -> Measured:
        """Seconds of making or reading a model."""
        return self.kept("building", self.shape_key(stage.id), lambda: _timed(lambda: self._shape(stage)))

    def texts(self) -> dict[str, list[str]]:
        """The recipe's text by domain."""
        from mixwell.run.stages.text import documents

        return {name: [d.text for d in docs] for name, docs in documents(self.stages["data"]).items()}

    def held_tokens(self, most: int) -> float:
        """Tokens that an evaluation reads: at most `most` of each domain, less where little is held out."""
        share, bytes_per_token = self.stages["data"].config.held_out, self.tokenizing()["bytes_per_token"]
        return sum(min(most, share * sum(map(len, texts)) / bytes_per_token) for texts in self.texts().values())

    def tokenizing(self) -> Measured:
        """Seconds a byte of training the tokenizer and of encoding, and bytes a token, on a sample of the text."""
        sample = _sample(self.texts())
        size = self.vocab_size()
        path = self.stages["tokenizer"].config.path
        return self.kept("tokenizing", [digest(sample), size, path], lambda: _time_tokenizing(sample, size, path))


def _read_cache() -> dict[str, Any]:
    try:
        found = read_json(cache_file())
    except (MixwellError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(run: Callable[[], Any], repeats: int = 2) -> float:
    """The shortest of a few runs: what the machine does when nobody disturbs it and the kernels are warm."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _timed(run: Callable[[], Any]) -> Measured:
    machine.reset_peak()
    return {"seconds": _seconds(run, 1), "peak_bytes": machine.peak_bytes()}


def _tokens(vocab_size: int, rows: int, length: int) -> Tensor:
    return torch.randint(0, vocab_size, (rows, length), generator=generator(0))


def _affordable(step: Callable[[int], Any], rows: int) -> int:
    """Rows of a timed step: all of them, or as many as PATIENCE_S pays for, judged by one row."""
    step(1)  # warms the kernels up
    return max(1, min(rows, int(PATIENCE_S / max(_seconds(lambda: step(1), 1), 1e-6))))


def _measured(step: Callable[[int], Any], rows: int, length: int, flops_per_token: float) -> Measured:
    timed = _affordable(step, rows)
    machine.reset_peak()
    rest = machine.peak_bytes()
    seconds = _seconds(lambda: step(timed))
    peak = rest + (machine.peak_bytes() - rest) * rows / timed
    return {"seconds_per_token": seconds / (timed * length), "flops_per_token": flops_per_token, "peak_bytes": peak}


def _time_training(start: Checkpoint, rows: int, config: Training) -> Measured:
    model = LanguageModel.from_checkpoint(start).train()
    optimizer = MasterAdamW(model, dtype=config.settled_dtype, betas=config.betas, eps=config.eps,
                            weight_decay=config.weight_decay)
    draws = generator(0, "calibrate")

    def step(count: int) -> None:
        tokens_BT = _tokens(model.config.vocab_size, count, config.seq_len + 1)
        labels_B = torch.zeros(count, dtype=torch.int64)
        loss = model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], labels_B=labels_B, generator=draws)
        (loss.nats if loss.aux is None else loss.nats + loss.aux).backward()
        optimizer.step(0.0, float(optimizer.grad_norm()), config.grad_clip)

    try:
        return _measured(step, rows, config.seq_len, 3.0 * model.flops_per_token(config.seq_len))
    finally:
        optimizer.release()


def _time_reading(start: Checkpoint, rows: int, length: int) -> Measured:
    model = LanguageModel.from_checkpoint(start).eval()

    @torch.no_grad()
    def step(count: int) -> None:
        tokens_BT = _tokens(model.config.vocab_size, count, length + 1)
        model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], labels_B=torch.zeros(count, dtype=torch.int64))

    return _measured(step, rows, length, model.flops_per_token(length))


def _time_writing(start: Checkpoint, prompt: int = 16, new: int = 16) -> Measured:
    model = LanguageModel.from_checkpoint(start).eval()
    tokens_BT = _tokens(model.config.vocab_size, 1, prompt)
    return {"seconds_per_token": _seconds(lambda: model.generate(tokens_BT, new)) / new}


def _time_converting(before: Checkpoint, stage: Stage) -> Measured:
    entry = registry.find(stage.method)

    def convert() -> None:
        after = entry.load()(before, stage.config, generator(0))
        tokens_BT = _tokens(before.arch["vocab_size"], ROWS, LENGTH)
        receipt.measure(before, after, tokens_BT, stage.method)

    return _timed(convert)


def _sample(texts: Mapping[str, Sequence[str]], most: int = 100_000) -> list[str]:
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


def _time_tokenizing(sample: list[str], vocab_size: int, path: str | None) -> Measured:
    size = sum(len(text.encode()) for text in sample)
    made: list[Tokenizer] = []
    learn = _seconds(lambda: made.append(Tokenizer.load(path) if path else Tokenizer.train(sample, vocab_size)), 1)
    counts: list[int] = []
    encode = _seconds(lambda: counts.append(sum(map(len, made[0].encode_batch(sample)))), 1)
    return {"learn_seconds_per_byte": learn / size, "encode_seconds_per_byte": encode / size,
            "bytes_per_token": size / max(1, counts[0])}
