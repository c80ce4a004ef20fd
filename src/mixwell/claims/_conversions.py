"""Small models that claims on conversions start from, what is made of them, and how good that is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.language import dense
from mixwell.core import registry
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict
from mixwell.core.rng import generator
from mixwell.lm.calibration import TextCalibration
from mixwell.lm.conversion import convert
from mixwell.lm.model import LanguageModel
from mixwell.lm.training.loop import TrainConfig, train
from mixwell.run.stages.convert import training_windows

TOKENS, MORE, LOOKED_AT = 200_000, 60_000, 8192
WIDTH = 64  # tokens of a window


def dense_start(bench: Bench, seed: int, hidden_dim: int = 256) -> Checkpoint:
    """The bench's dense model after `TOKENS` tokens."""
    trained = bench.train(dense(bench, hidden_dim), seed, tokens=TOKENS)
    return trained.model.to_checkpoint()


def mixture_start(bench: Bench, seed: int) -> Checkpoint:
    """The bench's mixture of eight experts, two a token, after `TOKENS` tokens."""
    trained = bench.train(bench.arch(), seed, tokens=TOKENS)
    return trained.model.to_checkpoint()


def text(bench: Bench, tokens: int = LOOKED_AT) -> TextCalibration:
    """Text of all domains to look at."""
    return training_windows(bench.data, tokens, WIDTH)


def made(bench: Bench, name: str, before: Checkpoint, seed: int, options: Mapping[str, Any],
         models: Callable[[str], Checkpoint] | None = None, looked_at: TextCalibration | None = None) -> Checkpoint:
    """What the conversion `name` makes of a model; its options are those of a recipe."""
    entry = registry.find(name, "convert")
    config = from_dict(entry.module().Config, options, name)
    calibration = looked_at or text(bench)
    calibration.look_up(models)
    draws = generator(seed, name)
    return convert(entry, before, config, draws, calibration)


def bits(bench: Bench, checkpoint: Checkpoint) -> float:
    """Bits per byte of held-out text, mean over the domains."""
    model = LanguageModel.from_checkpoint(checkpoint)
    return bench.evaluate(model).mean


def tuned(bench: Bench, checkpoint: Checkpoint, seed: int, *, tokens: int = MORE, lr: float = 2e-3,
          weights: Mapping[str, float] | None = None) -> Checkpoint:
    """The model trained on; every side of a claim sees the same windows at the same rates."""
    tensors = {name: tensor.detach().clone() for name, tensor in checkpoint.tensors.items()}
    model = LanguageModel.from_checkpoint(checkpoint.derive(tensors=tensors))
    config = TrainConfig(tokens=tokens, batch_size=32, seq_len=WIDTH, lr=lr, seed=seed + 1000)
    with tempfile.TemporaryDirectory() as folder:
        done = train(model, bench.data, config, folder, weights=weights)
    trained: Any = done.model
    return trained.to_checkpoint()
