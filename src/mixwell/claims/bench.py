"""The bench that claims are tried on: a small corpus that every machine has, small models, seeds, and a memory.

A training that was done once with the same architecture, seed and options is not done again, so that a room's
baselines are shared by all its claims.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixwell.core.files import digest
from mixwell.core.rng import generator

if TYPE_CHECKING:
    from torch import nn

    from mixwell.lm.data import TokenData
    from mixwell.lm.evaluate import Evaluation
    from mixwell.lm.model import LanguageModel

DOMAIN_BYTES = 400_000  # of each of the four domains
VOCAB_SIZE = 512


@dataclass(frozen=True, eq=False)
class Trained:
    """One small training run."""

    model: LanguageModel
    metrics: list[dict[str, Any]]  # lines as in metrics.jsonl
    evaluation: Evaluation  # on held-out text
    flops: float
    seconds: float

    @property
    def bits_per_byte(self) -> float:
        """Mean over the domains, on held-out text."""
        return self.evaluation.mean


class Bench:
    """Seeds, text and small trainings for claims. `seeds` has three or more entries."""

    def __init__(self, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
        if len(seeds) < 3:
            raise ValueError(f"{len(seeds)} seeds; a claim needs three or more")
        self.seeds = seeds
        self._folder = tempfile.TemporaryDirectory(prefix="mixwell-bench-")
        self._trained: dict[str, Trained] = {}

    @cached_property
    def data(self) -> TokenData:
        """Tokens of the standard library's four domains, byte-level BPE of 512 entries."""
        from mixwell.lm.data import write_shards
        from mixwell.lm.splitting import split_documents
        from mixwell.lm.tokenizer import Tokenizer
        from mixwell.run.datasets import standard_library

        domains = standard_library(DOMAIN_BYTES)
        splits = {name: split_documents(documents) for name, documents in domains.items()}
        texts = (d.text for split in splits.values() for d in split.train)
        tokenizer = Tokenizer.train(texts, VOCAB_SIZE)
        return write_shards(self._inside("tokens"), splits, tokenizer)

    def arch(self, channel_mixer: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        """A decoder of two layers, width 64; by default with a mixture of eight experts of 64, top-2."""
        default = {"method": "experts.layers.moe", "num_experts": 8, "hidden_dim": 64}
        mixer: dict[str, Any] = default | dict(channel_mixer or {})
        if mixer["method"].endswith("swiglu"):
            mixer = {name: mixer[name] for name in ("method", "hidden_dim")}
        sizes = {"vocab_size": VOCAB_SIZE, "dim": 64, "num_layers": 2, "num_heads": 4}
        decoder = sizes | {"channel_mixer": mixer}
        return decoder | changes

    def train(self, arch: Mapping[str, Any], seed: int, *, tokens: int = 300_000, **options: Any) -> Trained:
        """Train a fresh model of `arch` on the bench's data; `options` go to `TrainConfig`."""
        usual = {"tokens": tokens, "batch_size": 32, "seq_len": 64, "lr": 4e-3, "seed": seed}
        settings = usual | options
        key = digest({"arch": arch, "settings": settings})
        if key not in self._trained:
            self._trained[key] = self._train(arch, seed, settings, key)
        known = self._trained[key]
        return copy.copy(known)

    def _train(self, arch: Mapping[str, Any], seed: int, settings: Mapping[str, Any], key: str) -> Trained:
        from mixwell.core.config import from_dict
        from mixwell.lm.config import ModelConfig
        from mixwell.lm.model import LanguageModel
        from mixwell.lm.training.loop import TrainConfig, train

        model = LanguageModel(from_dict(ModelConfig, arch), generator(seed, "model"))
        config = from_dict(TrainConfig, settings, "bench")
        done = train(model, self.data, config, self._inside(key[:16]))
        found = self.evaluate(done.model, config.seq_len)
        return Trained(model, done.metrics, found, done.flops, done.seconds)

    def evaluate(self, model: nn.Module, seq_len: int = 64) -> Evaluation:
        """Bits per byte on held-out text, 8192 tokens of each domain at most."""
        from mixwell.lm.evaluate import evaluate

        return evaluate(model, self.data, max_tokens=8192, batch_size=32, seq_len=seq_len)

    def _inside(self, name: str) -> Path:
        return Path(self._folder.name) / name
