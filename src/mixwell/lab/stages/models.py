"""Stages that a run starts from: a freshly built model, or one read from a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.files import digest, digest_file
from mixwell.core.rng import generator
from mixwell.lab.stages._parts import Job, Prediction, Stage, with_tokenizer
from mixwell.lm import checkpoint
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.lm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mixwell.lab.calibrate import Calibrator

DENSE = "experts.layers.swiglu"
START = {"dim": 256, "num_layers": 4, "num_heads": 4}  # small enough for two cores and five minutes


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Keys of `lm.config.ModelConfig`, and `hidden_dim` as a short word for the channel mixer's."""

    options: Mapping[str, Any]

    def model(self, vocab_size: int) -> ModelConfig:
        """The full model config; `vocab_size` counts where the recipe gives none."""
        return _model_config(self.options, vocab_size, "model")


def parse_build(options: Mapping[str, Any], where: str) -> BuildConfig:
    """Check the options now, on a model without weights, so that a wrong shape is told before anything runs."""
    config = _model_config(options, 2048, where)
    try:
        with torch.device("meta"):
            LanguageModel(config)
    except MixwellError as error:
        raise MixwellError(f"{where}: {error}") from error
    return BuildConfig(options=dict(options))


def _model_config(options: Mapping[str, Any], vocab_size: int, where: str) -> ModelConfig:
    values = {"vocab_size": vocab_size, **START, **options}
    hidden = values.pop("hidden_dim", 2 * values["dim"] if isinstance(values["dim"], int) else 0)
    mixer = values.setdefault("channel_mixer", {"method": DENSE})
    if isinstance(mixer, Mapping):
        values["channel_mixer"] = {"hidden_dim": hidden, **mixer}
    elif "hidden_dim" in options:
        raise MixwellError(f"{where}: hidden_dim stands beside a list of channel mixers; write it into each of them.")
    return from_dict(ModelConfig, values, where)


def run_build(job: Job) -> dict[str, Any]:
    """Initialise the weights from the stage's seed."""
    vocab_size = job.result("tokenizer")["vocab_size"]
    config = job.stage.config.model(vocab_size)
    if config.vocab_size < vocab_size:
        raise MixwellError(f"model.vocab_size is {config.vocab_size}, the tokenizer has {vocab_size} ids; "
                           "leave it out, or give at least as many.")
    model = LanguageModel(config, generator(job.stage.seed, "build"))
    made = with_tokenizer(model.to_checkpoint(), job.inputs["tokenizer"])
    checkpoint.write(made.grown(record=job.record()), job.folder / "model")
    return describe(model)


def describe(model: LanguageModel) -> dict[str, Any]:
    """What a stage's result says of its model."""
    return {"parameters": model.num_parameters(), "active_parameters": model.num_parameters(active=True),
            "vocab_size": model.config.vocab_size, "arch": to_dict(model.config)}


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """A model that is there already."""

    path: str  # Hugging Face folder


def load_fingerprint(stage: Stage) -> str:
    """Digest of every file of the folder."""
    folder = Path(stage.config.path)
    if not folder.is_dir():
        raise MixwellError(f"model: {folder} is not a folder; expected a Hugging Face model folder.")
    return digest({f.name: digest_file(f) for f in sorted(folder.iterdir()) if f.is_file()})


def run_load(job: Job) -> dict[str, Any]:
    """Read the model once, so that a damaged one is refused here; its folder stays where it is."""
    path = Path(job.stage.config.path).resolve()
    model, tokenizer = checkpoint.load(path), Tokenizer.load(job.inputs["tokenizer"])
    if model.tokenizer is not None and model.tokenizer.digest != tokenizer.digest:
        raise MixwellError(f"{path} has a tokenizer of its own, and the run uses another; leave `tokenizer` out of the "
                           "recipe, or give this model a run of its own.")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise MixwellError(f"the tokenizer has {tokenizer.vocab_size} ids, the model embeds {model.config.vocab_size}; "
                           "expected a tokenizer no larger than the model's vocabulary (set tokenizer.vocab_size).")
    return {"path": str(path), **describe(model)}


def predict_model(stage: Stage, calibrator: Calibrator) -> Prediction:
    """From making or reading the model once."""
    found = calibrator.building(stage)
    return Prediction(seconds=found["seconds"], peak_bytes=found["peak_bytes"])
