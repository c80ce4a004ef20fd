"""The bench that claims are tried on: a small corpus that every machine has, small models, and a memory.

A training that was done once with the same architecture, seed and options is not done again, so that a room's
baselines are shared by all its claims, also by those that other processes try on the same folder.
"""

from __future__ import annotations

import copy
import fcntl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixwell.claims import trunk
from mixwell.claims.trunk import Part
from mixwell.core.files import digest, read_json, whole_folder, write_json
from mixwell.core.rng import generator

if TYPE_CHECKING:
    from torch import nn

    from mixwell.lm.data import TokenData
    from mixwell.lm.evaluate import Evaluation
    from mixwell.lm.model import LanguageModel

DOMAIN_BYTES = 400_000  # of each of the four domains
VOCAB_SIZE = 512
HELD_TOKENS = 8192  # of each domain, at most


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
    """Text and small trainings for claims, kept in `folder`; without one, in a folder that goes with the bench.

    `seeds` are those of claims that are tried whole.
    """

    def __init__(self, folder: str | Path | None = None, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
        self.seeds = seeds
        self._own = tempfile.TemporaryDirectory(prefix="mixwell-bench-") if folder is None else None
        self._folder = Path(self._own.name if self._own else folder or "")
        self._trained: dict[str, Trained] = {}

    @cached_property
    def data(self) -> TokenData:
        """Tokens of the standard library's four domains, byte-level BPE of 512 entries."""
        from mixwell.lm.data import TokenData

        folder = self._inside("tokens")
        with self._alone("tokens"):
            if not folder.exists():
                _write_tokens(folder)
        return TokenData.open(folder)

    def arch(self, channel_mixer: Mapping[str, Any] | None = None, /, **changes: Any) -> dict[str, Any]:
        """A decoder of two layers, width 64; by default with a mixture of eight experts of 64, top-2.

        A `channel_mixer` among the changes stands as it is, without those defaults.
        """
        default = {"method": "experts.layers.moe", "num_experts": 8, "hidden_dim": 64}
        given = channel_mixer or {}
        mixer: dict[str, Any] = {**default, **given}
        if mixer["method"].endswith("swiglu"):
            own = ("method", "hidden_dim")
            mixer = {name: mixer[name] for name in own}
        sizes = {"vocab_size": VOCAB_SIZE, "dim": 64, "num_layers": 2, "num_heads": 4}
        decoder = sizes | {"channel_mixer": mixer}
        return decoder | changes

    def train(self, arch: Mapping[str, Any], seed: int, *, tokens: int = 300_000, swapped: Part | None = None,
              **options: Any) -> Trained:
        """Train a model of `arch` on the bench's data; `options` go to `TrainConfig`.

        It is fresh, or the trunk with these mixers `swapped` for fresh ones.
        """
        usual = {"tokens": tokens, "batch_size": 32, "seq_len": 64, "lr": 4e-3, "seed": seed}
        settings = usual | options
        key = digest({"arch": arch, "settings": settings, "swapped": swapped})
        if key not in self._trained:
            with self._alone(key[:16]):
                self._trained[key] = self._known(arch, seed, settings, swapped, key[:16])
        known = self._trained[key]
        return copy.copy(known)

    def started(self, arch: Mapping[str, Any], seed: int, swapped: Part | None = None) -> LanguageModel:
        """The model of `arch` before its first step."""
        model = _fresh(arch, seed)
        if swapped is None:
            return model
        start = self.train(trunk.arch_of(arch, swapped), trunk.SEED, tokens=trunk.TOKENS)
        trunk.require_past_bigrams(start.bits_per_byte, self.data, HELD_TOKENS)
        trunk.swap(start.model, model, seed, self.data, swapped)
        return model

    def _known(self, arch: Mapping[str, Any], seed: int, settings: Mapping[str, Any], swapped: Part | None,
               name: str) -> Trained:
        """A training from the folder, or done now and kept there."""
        folder = self._inside(f"{name}-trained")
        if folder.exists():
            return _read(folder, _fresh(arch, seed))
        model = self.started(arch, seed, swapped)
        found = self._train(model, settings, self._inside(name))
        with whole_folder(folder) as scratch:
            _write(scratch, found)
        return found

    def _train(self, model: LanguageModel, settings: Mapping[str, Any], folder: Path) -> Trained:
        from mixwell.core.config import from_dict
        from mixwell.lm.training.loop import TrainConfig, train

        config = from_dict(TrainConfig, settings, "bench")
        done = train(model, self.data, config, folder)
        found = self.evaluate(done.model, config.seq_len)
        return Trained(model, done.metrics, found, done.flops, done.seconds)

    def evaluate(self, model: nn.Module, seq_len: int = 64) -> Evaluation:
        """Bits per byte on held-out text, `HELD_TOKENS` of each domain at most."""
        from mixwell.lm.evaluate import evaluate

        return evaluate(model, self.data, max_tokens=HELD_TOKENS, batch_size=32, seq_len=seq_len)

    def _inside(self, name: str) -> Path:
        return self._folder / name

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Keep other processes from making the same thing at the same time."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._inside(f"{name}.lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _fresh(arch: Mapping[str, Any], seed: int) -> LanguageModel:
    from mixwell.core.config import from_dict
    from mixwell.lm.config import ModelConfig
    from mixwell.lm.model import LanguageModel

    return LanguageModel(from_dict(ModelConfig, arch), generator(seed, "model"))


def _write_tokens(folder: Path) -> None:
    from mixwell.lm.data import write_shards
    from mixwell.lm.splitting import split_documents
    from mixwell.lm.tokenizer import Tokenizer
    from mixwell.run.datasets import standard_library

    domains = standard_library(DOMAIN_BYTES)
    splits = {name: split_documents(documents) for name, documents in domains.items()}
    texts = (d.text for split in splits.values() for d in split.train)
    tokenizer = Tokenizer.train(texts, VOCAB_SIZE)
    write_shards(folder, splits, tokenizer)


def _write(folder: Path, trained: Trained) -> None:
    from mixwell.formats.tensors import save_tensors

    save_tensors(folder / "model.safetensors", trained.model.state_dict())
    saved = {"metrics": trained.metrics, "evaluation": asdict(trained.evaluation), "flops": trained.flops,
            "seconds": trained.seconds}
    write_json(folder / "trained.json", saved)


def _read(folder: Path, model: LanguageModel) -> Trained:
    """What `_write` kept, the weights put into a model of the same architecture and seed."""
    from mixwell.formats.tensors import open_file
    from mixwell.lm.evaluate import Evaluation

    saved = read_json(folder / "trained.json")
    tensors = dict(open_file(folder / "model.safetensors"))
    model.cast(tensors["embed.weight"].dtype)  # what the machine trains in
    model.load_state_dict(tensors)
    evaluation = Evaluation(**saved.pop("evaluation"))
    return Trained(model.eval(), evaluation=evaluation, **saved)
