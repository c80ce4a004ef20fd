"""A mixture larger than memory: what all tokens go through is read, experts go from file to file layer by layer.

Numbers are computed with in float32; experts lie on disk with the digits that they were stored with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mixwell.core.errors import MixwellError
from mixwell.formats.declared import form_of
from mixwell.formats.tensors import save_tensors
from mixwell.lm import folder as folders
from mixwell.lm import weights
from mixwell.lm.model import LanguageModel
from mixwell.serve.offload import STACKS, Expert, Fetch, offloadable


def read_apart(source: Path, folder: Path) -> tuple[LanguageModel, Fetch]:
    """The model in `source` without its experts, and what reads one of them from the files written into `folder`.

    Memory holds the model without experts and one layer of them at a time. Raises `MixwellError` for a model without a
    sparse mixture, for compressed weights, and for what `mixwell.lm.model.load` refuses.
    """
    checkpoint = folders.read(source)
    tensors = checkpoint.tensors
    if any(name.endswith((weights.SCALE, weights.BITS)) for name in tensors):
        raise MixwellError(f"{source} holds compressed weights, whose experts stay in memory; serve it without "
                           "--resident, or the model that it was made from.")
    with weights.described_alone():
        model = weights.skeleton(LanguageModel, checkpoint.arch)
    stacks = _stacks(model)
    if not stacks:
        raise MixwellError("the model has no sparse mixture whose experts could wait on disk; serve it as it is.")
    _fill_rest(model, tensors, stacks)
    for number, names in stacks.items():
        weights.fill_some(model, tensors, names)
        dtypes = [form_of(tensors, name).dtype or torch.float32 for name in names]
        _move(model.layers[number].channel_mixer, dtypes, folder / f"{number}.safetensors")
    model.lineage, model.files = tuple(checkpoint.lineage), dict(checkpoint.files)
    return model.eval(), partial(_from_folder, folder)


def _stacks(model: LanguageModel) -> dict[int, list[str]]:
    """Names of the stacks of experts by layer."""
    found = {}
    for number, layer in enumerate(model.layers):
        if offloadable(layer.channel_mixer):
            found[number] = [f"layers.{number}.channel_mixer.{name}" for name in STACKS]
    return found


def _fill_rest(model: LanguageModel, tensors: Mapping[str, Tensor], stacks: Mapping[int, list[str]]) -> None:
    """Read what is no expert."""
    apart = {name for names in stacks.values() for name in names}
    shapes = weights.shapes(model)
    stay = [name for name in shapes if name not in apart]
    numbers = sum(math.prod(shapes[name]) for name in stay)
    weights.check_memory(numbers * torch.float32.itemsize, "the model without its experts")
    weights.fill_some(model, tensors, stay)


def _move(mixer: Any, dtypes: list[torch.dtype], path: Path) -> None:
    """Write a layer's experts, with the digits that they had, and forget them."""
    held = {}
    for name, dtype in zip(STACKS, dtypes):
        parameter = getattr(mixer, name)
        held[name] = parameter.detach().to(dtype)
        empty = parameter.detach().to("meta")
        setattr(mixer, name, nn.Parameter(empty, requires_grad=False))
    save_tensors(path, held)


def _from_folder(folder: Path, layer: int, expert: int) -> Expert:
    with safe_open(folder / f"{layer}.safetensors", "pt") as file:
        gate_up, down = (file.get_slice(name)[expert].float() for name in STACKS)
    return gate_up, down
