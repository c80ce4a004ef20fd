"""A language model that holds one layer's matrices at a time: for a look at a checkpoint that is larger than memory.

Each layer reads its own before it computes and lets them go behind it, at every pass. Embedding, head, norms, biases
and routers stay.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.checkpoint import Checkpoint
from mixwell.lm import weights
from mixwell.lm.model import LanguageModel

LAYERS, ROUTER = "layers.", ".router."  # parts of names: routers may be shared by layers


def streamed(checkpoint: Checkpoint) -> LanguageModel:
    """A model to read with, in float32; one with compressed weights is held whole.

    What `LanguageModel.from_checkpoint` refuses raises `MixwellError`, numbers as they are read.
    """
    tensors = checkpoint.tensors
    if any(name.endswith((weights.SCALE, weights.BITS)) for name in tensors):
        return LanguageModel.from_checkpoint(checkpoint, dtype=torch.float32).eval()
    model = weights.skeleton(LanguageModel, checkpoint.arch)
    coming = _coming(model)
    stay = [name for name in weights.shapes(model) if name not in coming]
    weights.fill_some(model, tensors, stay)
    for number, layer in enumerate(model.layers):
        start = f"{LAYERS}{number}."
        own = [name for name in coming if name.startswith(start)]
        layer.register_forward_pre_hook(functools.partial(_read, model, tensors, own))
        layer.register_forward_hook(functools.partial(_let_go, model, own))
    return model.eval()


def _coming(model: nn.Module) -> dict[str, Tensor]:
    """The matrices and stacks of layers, by name."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        inside = name.startswith(LAYERS) and ROUTER not in name
        if inside and parameter.ndim > 1:
            found[name] = parameter
    return found


def _read(model: LanguageModel, tensors: Mapping[str, Tensor], names: Sequence[str], *called: Any) -> None:
    weights.fill_some(model, tensors, names)


def _let_go(model: LanguageModel, names: Sequence[str], *called: Any) -> None:
    for name in names:
        owner_name, _, attribute = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        parameter = getattr(owner, attribute)
        empty = torch.empty_like(parameter, device="meta")
        owner._parameters[attribute] = nn.Parameter(empty, requires_grad=False)
