"""One method on one model, outside a recipe: `mixwell.apply("convert.upcycle", "dense", out="moe", num_experts=8)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixwell.core import machine, registry
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.lm import folder as folders
from mixwell.lm.documents import Reader
from mixwell.lm.model import LanguageModel
from mixwell.lm.tokenizer import Tokenizer
from mixwell.report.targets import check_folder
from mixwell.run.paths import find_model
from mixwell.run.stages.convert import LENGTH, ROWS, converted

ROOMS = ("convert", "precision")  # whose methods turn one checkpoint into another


def apply(name: str, model: LanguageModel | str | Path, *, out: str | Path | None = None,
          text: str | Path | None = None, seed: int = 0, **options: Any) -> LanguageModel:
    """Apply the method `name` to a model, given as such or by its place, and return the new model.

    model: a `LanguageModel`, a model folder, a stage's folder, or a run's stage such as `runs/mine:dense`.

    The model is weighed before and after on `text` (a file, folder or glob), else on random tokens; a broken promise
    raises `MixwellError` and writes nothing. The receipt is in the last record of the result's `lineage`.
    out: folder to write the result to. seed: of methods that draw. options: fields of the method's `Config`.
    """
    entry = registry.find(name) if "." in name else _short(name)
    if entry.room not in ROOMS:
        raise MixwellError(f"{entry.name} turns no checkpoint into another; expected a method of {' or '.join(ROOMS)}.")
    if out is not None:
        check_folder(out)
    config = from_dict(entry.module().Config, options, entry.name)
    before = model.to_checkpoint() if isinstance(model, LanguageModel) else folders.read(find_model(model))
    tokens_BT = _read(text, before.files) if text is not None else _random(before.arch["vocab_size"], seed)
    after, receipt = converted(before, entry.name, config, seed, tokens_BT)
    source = "a model in memory" if isinstance(model, LanguageModel) else str(model)
    after = after.derive(record={
        "id": entry.name, "stage": entry.room, "method": entry.name, "config": to_dict(config), "seed": seed,
        "inputs": [source], "tokens": tokens_BT.numel(), "measured_on": "random tokens" if text is None else str(text),
        "versions": machine.versions(), "receipt": receipt.to_dict()})
    if out is not None:
        folders.write(after, out)
    return LanguageModel.from_checkpoint(after)


def _short(name: str) -> registry.Entry:
    """The method of that name, or of that last part where only one of these rooms has it."""
    entries = [entry for room in ROOMS for entry in registry.family(room)]
    found = [entry for entry in entries if _last_part(entry) == name]
    if len(found) == 1:
        return found[0]
    return registry.find(name)


def _last_part(entry: registry.Entry) -> str:
    return entry.name.rpartition(".")[2]


def _random(vocab_size: int, seed: int) -> Tensor:
    draws = generator(seed, "receipt")
    return torch.randint(0, vocab_size, (ROWS, LENGTH), generator=draws)


def _read(text: str | Path, files: Any) -> Tensor:
    """The beginning of the text as windows [B, T]."""
    if "tokenizer.json" not in files:
        raise MixwellError("the model has no tokenizer to read the text with; leave it out to weigh on random tokens.")
    tokenizer, ids = Tokenizer.from_files(files), []
    for document in Reader(text):
        ids += tokenizer.prompt(document.text)
        if len(ids) >= ROWS * LENGTH:
            break
    length = min(LENGTH, len(ids))
    if length < 2:
        raise MixwellError(f"{text} gives {len(ids)} tokens; expected at least 2.")
    rows = min(ROWS, len(ids) // length)
    return torch.tensor(ids[: rows * length]).view(rows, length)
