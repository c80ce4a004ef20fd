"""A language model: a network with its tokenizer, its files and its history, from folder to folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixwell.adapters import files
from mixwell.core import rng
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import to_dict
from mixwell.lm import chat, weights
from mixwell.lm import folder as folders
from mixwell.lm import generate as sampling
from mixwell.lm.config import ModelConfig
from mixwell.lm.generation import FILE as SETTINGS
from mixwell.lm.generation import GenerationSettings
from mixwell.lm.network import Network
from mixwell.lm.tokenizer import MAIN, Tokenizer


class LanguageModel(Network):
    """A decoder-only language model.

    Parameters are drawn from `generator` (default: seed 0): normal with std 0.02, the last map of each residual branch
    scaled by 1 / sqrt(2 num_layers) (Radford et al. 2019). `dtype` is the type computed in; norms and routers stay
    float32. Impossible shapes, and sizes that no memory here would hold, raise `MixwellError`.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator | None = None,
                 dtype: torch.dtype = torch.float32) -> None:
        if torch.get_default_device().type != "meta":
            weights.check_size(config, dtype)
        super().__init__(config, generator, dtype)
        self.lineage: tuple[Mapping[str, Any], ...] = ()
        self.files: dict[str, bytes] = {}  # tokenizer.json and the like, carried from folder to folder
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that came with the model's files, or the one set since; None where there is none."""
        if self._tokenizer is None and MAIN in self.files:
            self._tokenizer = Tokenizer.from_files(self.files)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.files = {**self.files, **tokenizer.save_files()}

    @property
    def generation(self) -> GenerationSettings:
        """How the model's folder says that it is sampled from; what is set here is saved with it."""
        return GenerationSettings.from_files(self.files)

    @generation.setter
    def generation(self, settings: GenerationSettings) -> None:
        self.files = {**self.files, SETTINGS: settings.written(self.files)}

    def generate(self, tokens_BT: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
        """Continue each row; see `mixwell.lm.generate.steps`. What is left out is as `generation` says."""
        return sampling.generate(self, tokens_BT, max_new_tokens, **self.drawing(options))

    def drawing(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options, and those of `generation` that they leave out; without a generator draws begin with seed 0."""
        settings = self.generation
        if settings.left_out:
            warnings.warn(f"{SETTINGS} asks for {', '.join(settings.left_out)}, which mixwell does not know; the text "
                          "is drawn without.", stacklevel=3)
        merged = settings.options() | dict(options)
        if merged.get("do_sample") and "do_sample" not in options:
            merged.setdefault("generator", rng.generator(0))
        return merged

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids at which an answer is over: those of `generation`, else of the config; the tokenizer's end of text; and
        what its chat template puts behind an answer."""
        own = self.generation.eos_token_id or sampling.ids(self.config.eos_token_id)
        found = dict.fromkeys(own)
        if self.tokenizer is not None:
            closing = self.tokenizer.id_of(self.tokenizer.names.get("eos_token"))
            closings = closing, *chat.ends(self.tokenizer)
            found |= dict.fromkeys(number for number in closings if number is not None)
        return tuple(found)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, dtype: torch.dtype | str = "auto") -> LanguageModel:
        """A model with copies of the checkpoint's tensors; int8 ones stay int8 and are scaled on use.

        `dtype` "auto" keeps the type they are stored in.
        """
        model = weights.skeleton(cls, checkpoint.arch)
        weights.fill(model, checkpoint.tensors, dtype)
        model.lineage = tuple(checkpoint.lineage)
        model.files = dict(checkpoint.files)
        return model

    def to_checkpoint(self) -> Checkpoint:
        """The model as a value; its tensors share the model's memory."""
        arch = to_dict(self.config)
        tensors = weights.tensors_of(self)
        return Checkpoint(arch, tensors, tuple(self.lineage), dict(self.files))

    def save(self, folder: str | Path) -> Path:
        """Write a Hugging Face folder; see `mixwell.lm.folder.write`."""
        return folders.write(self.to_checkpoint(), folder)


def load(path: str | Path, dtype: torch.dtype | str = "auto") -> LanguageModel:
    """The language model in a folder.

    Reads the folders of Hugging Face decoders that docs/families.md lists, GGUF files, and mixwell's own. `dtype`:
    "auto" (as stored; float16 becomes float32, and so does bfloat16 where this CPU only emulates it), "fp32", "bf16"
    or a torch type. Anything in the folder that would change the result and is not understood, and any tensor that is
    missing, left over or misshapen, raises `MixwellError`. An adapter that the folder holds stands beside the model.
    """
    folder = Path(path)
    model = LanguageModel.from_checkpoint(folders.read(folder, beside=True), dtype)
    if folders.has_adapter(folder):
        files.load(folder / folders.BESIDE, model)
    return model
