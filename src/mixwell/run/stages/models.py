"""Stages that a run starts from: a freshly built model, or one read from a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from mixwell.core import registry
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError, shown
from mixwell.core.files import digest
from mixwell.core.rng import generator
from mixwell.core.units import si
from mixwell.lm import folder as folders
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel, load
from mixwell.lm.tokenizer import Tokenizer
from mixwell.lm.weights import memory_bytes
from mixwell.run import facts
from mixwell.run.paths import find_model
from mixwell.run.stages._parts import Job, Stage, with_tokenizer

DENSE, MIXTURE = "experts.layers.swiglu", "experts.layers.moe"
MIXTURE_WORDS = ("num_experts", "router", "balance", "capacity_factor", "overflow", "shared_experts",
                 "shared_hidden_dim")  # options of the mixture that may stand among the model's own
SHAPE_TOKENS = 10_000  # of made-up text, for routers that learn from text before they can route
MOST_LAYERS, MOST_COUNT, EXACT = 1000, 2**31 - 1, 2**53
START = {"dim": 256, "num_layers": 4, "num_heads": 4}  # small enough for two cores and five minutes


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Keys of `lm.config.ModelConfig`; `hidden_dim` and `MIXTURE_WORDS` are short words for the channel mixer's."""

    options: Mapping[str, Any]

    def model(self, vocab_size: int) -> ModelConfig:
        """The full model config; `vocab_size` counts where the recipe gives none."""
        return _model_config(self.options, vocab_size, "model")


def parse_build(options: Mapping[str, Any], where: str) -> BuildConfig:
    """Check the options now, on a model without weights, so that a wrong shape is told before anything runs."""
    config = _model_config(options, 2048, where)
    try:
        with torch.device("meta"):
            model = LanguageModel(config)
    except MixwellError as error:
        raise MixwellError(f"{where}: {error}") from error
    except (RuntimeError, TypeError, OverflowError, ZeroDivisionError) as error:  # torch's, of a shape that cannot be
        raise MixwellError(f"{where}: no model has this shape ({_first_line(error)}).") from error
    _check_size(model, where)
    return BuildConfig(options=dict(options))


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _check_size(model: LanguageModel, where: str) -> None:
    """Refuse a model whose weights alone are larger than this machine's memory."""
    weights = 4 * model.num_parameters()  # float32
    memory = memory_bytes()
    if weights > memory:
        raise MixwellError(f"{where}: the weights take {si(weights, 'B')}, this machine has {si(memory, 'B')} of "
                           "memory; expected a smaller model.")


def _model_config(options: Mapping[str, Any], vocab_size: int, where: str) -> ModelConfig:
    values = {"vocab_size": vocab_size, **START, **options}
    _check_counts(values, where)
    given = {name: values.pop(name) for name in ("hidden_dim",) if name in values}
    words = {name: values.pop(name) for name in MIXTURE_WORDS if name in values}
    mixer = values.setdefault("channel_mixer", {"method": MIXTURE if words else DENSE})
    if isinstance(mixer, Mapping):
        values["channel_mixer"] = _mixer(mixer, words, given or _usual_width(mixer, values["dim"]), where)
    elif short := [*given, *words]:
        raise MixwellError(f"{where}: {short[0]} stands beside a list of channel mixers; write it into each of them.")
    return from_dict(ModelConfig, values, where)


def _check_counts(value: Any, where: str) -> None:
    """Refuse counts that no model has, before anything is made for each of them."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_counts(item, f"{where}.{name}")
    layers = where.endswith(".num_layers")
    most = MOST_LAYERS if layers else MOST_COUNT
    if isinstance(value, float) and not layers:
        most = EXACT  # it may be no count
    number = isinstance(value, (int, float))
    if number and value > most:
        raise MixwellError(f"{where}: {shown(value)} came; expected {most} at most.")


def _mixer(mixer: Mapping[str, Any], words: Mapping[str, Any], width: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The channel mixer with the options that stand beside it."""
    if twice := sorted(set(words) & set(mixer)):
        raise MixwellError(f"{where}: {twice[0]!r} stands twice, in channel_mixer and beside it; keep one.")
    return _with_method({**width, **words, **mixer})


def _usual_width(mixer: Mapping[str, Any], dim: Any) -> dict[str, int]:
    """Twice the model's width, for a channel mixer that has a hidden width; nothing for others."""
    if not isinstance(dim, int) or not isinstance(mixer.get("method"), str):
        return {}  # what is wrong is told where the config is made
    config = registry.find(mixer["method"], within="experts.layers").module().Config
    known = {field.name for field in fields(config)}
    return {"hidden_dim": 2 * dim} if "hidden_dim" in known else {}


def _with_method(mixer: dict[str, Any]) -> dict[str, Any]:
    """The router's bare name written out as its options."""
    router = mixer.get("router")
    if not isinstance(router, str):
        return mixer
    return {**mixer, "router": {"method": router}}


def run_build(job: Job) -> dict[str, Any]:
    """Initialise the weights from the stage's seed."""
    vocab_size = job.result("tokenizer")["vocab_size"]
    config = job.stage.config.model(vocab_size)
    if config.vocab_size < vocab_size:
        raise MixwellError(f"model.vocab_size is {config.vocab_size}, the tokenizer has {vocab_size} ids; "
                           "leave it out, or give at least as many.")
    draws = generator(job.stage.seed, "build")
    model = LanguageModel(config, draws)
    made = with_tokenizer(model.to_checkpoint(), job.inputs["tokenizer"])
    after = made.derive(record=job.record())
    folders.write(after, job.folder / "model")
    return describe(model)


def build_shape(stage: Stage, before: Checkpoint | None, vocab_size: int) -> Checkpoint:
    """A model of the stage's shape with random weights."""
    config = stage.config.model(vocab_size)
    sketched = torch.get_default_device().type == "meta"  # a generator would make numbers after all
    model = LanguageModel(config, None if sketched else generator(0))
    if model.needs_tokens:
        draws = generator(0)
        text = torch.randint(vocab_size, (SHAPE_TOKENS,), generator=draws)
        model.fit_tokens(text, generator(0))
    return model.to_checkpoint()


def describe(model: LanguageModel) -> dict[str, Any]:
    """What a stage's result says of its model."""
    return {"parameters": model.num_parameters(), "active_parameters": model.num_parameters(active=True),
            "vocab_size": model.config.vocab_size, "arch": to_dict(model.config)}


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """A model that is there already."""

    path: str  # Hugging Face folder; in a recipe a run's stage, too


def parse_load(options: Mapping[str, Any], where: str) -> LoadConfig:
    """The stage's config from plain data, with the folder that a run's stage or a stage's folder stands for."""
    config = from_dict(LoadConfig, options, where)
    try:
        return LoadConfig(path=str(find_model(config.path)))
    except MixwellError as error:
        raise MixwellError(f"{where}: {error}") from error


def load_fingerprint(stage: Stage) -> str:
    """Digest of every file of the folder, or of the one file."""
    return folder_digest(Path(stage.config.path))


def folder_digest(path: Path) -> str:
    """Digest of every file of a model's folder, or of the one file; kept, since weights may be many gigabytes."""
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [found for found in inside if found.is_file()]

    def read() -> dict[str, str]:
        contents = {file.name: facts.digest_once(file) for file in files}
        return {"digest": digest(contents)}

    return facts.kept("digest", files, read)["digest"]


def run_load(job: Job) -> dict[str, Any]:
    """Read the model once, so that a damaged one is refused here; its folder stays where it is."""
    path = Path(job.stage.config.path).resolve()
    model, tokenizer = load(path), Tokenizer.load(job.inputs["tokenizer"])
    if model.tokenizer is not None and model.tokenizer.digest != tokenizer.digest:
        raise MixwellError(f"{path} has a tokenizer of its own, and the run uses another; leave `tokenizer` out of the "
                           "recipe, or give this model a run of its own.")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise MixwellError(f"the tokenizer has {tokenizer.vocab_size} ids, the model embeds {model.config.vocab_size}; "
                           "expected a tokenizer no larger than the model's vocabulary (set tokenizer.vocab_size).")
    return {"path": str(path), **describe(model)}


def load_shape(stage: Stage, before: Checkpoint | None, vocab_size: int) -> Checkpoint:
    """The model itself."""
    return folders.read(stage.config.path)
