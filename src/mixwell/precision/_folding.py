"""What a norm feeds, and changes of basis there that leave what the model computes as it is.

Legend: D width, I input width, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError

ATTENTION = ("qkv.weight",)  # what reads the norm in a sequence mixer
CHANNEL = ("gate_up_proj", "shared_gate_up_proj", "router.weight", "shared_gate")  # and in a channel mixer
ELSEWHERE = ("qkv.bias", "out.weight", "out.bias", "q_norm.weight", "k_norm.weight", "sinks", "down_proj",
             "shared_down_proj", "gate_up_bias", "down_bias", "router.bias")  # what reads something else


def fed(checkpoint: Checkpoint, doing: str) -> dict[str, list[str]]:
    """Norm -> the weights that read it, of all layers.

    Raises `MixwellError` for norms that are not plain RMS norms before each mixer, and for mixers with tensors that are
    not known to read the norm or something else.
    """
    arch = checkpoint.arch
    kind, place = arch.get("norm", "rms"), arch.get("norm_place", "before")
    if kind != "rms" or place != "before":
        raise MixwellError(f"{doing} changes what RMS norms before each mixer give; this model has {kind} norms "
                           f"{place} them.")
    found: dict[str, list[str]] = {}
    for layer in range(int(arch["num_layers"])):
        for mixer, reading in (("sequence", ATTENTION), ("channel", CHANNEL)):
            start = f"layers.{layer}.{mixer}_mixer."
            readers = _readers(checkpoint.tensors, start, reading, doing)
            found[f"layers.{layer}.{mixer}_norm.weight"] = readers
    return found


def _readers(tensors: Mapping[str, Tensor], start: str, reading: Sequence[str], doing: str) -> list[str]:
    readers = []
    for name in tensors:
        if not name.startswith(start):
            continue
        inside = name.removeprefix(start)
        if inside in reading:
            readers.append(name)
        elif inside not in ELSEWHERE:
            raise MixwellError(f"{name}: {doing} does not know what it reads; expected attention and SwiGLU blocks.")
    return readers


def scaled(tensors: Mapping[str, Tensor], norm: str, readers: Sequence[str], scale_D: Tensor) -> dict[str, Tensor]:
    """The norm's gain over `scale_D`, and its readers' columns times it; what they compute stays."""
    gain = tensors[norm]
    made = {norm: (gain.double() / scale_D).to(gain.dtype)}
    for name in readers:
        weight = tensors[name]
        made[name] = (weight.double() * scale_D).to(weight.dtype)
    return made


def largest_columns(weights: Sequence[Tensor]) -> Tensor:
    """The largest |w| of each input among all weights, float64 [I]."""
    most = []
    for weight in weights:
        rows = weight.double().flatten(0, -2)
        most.append(rows.abs().amax(0))
    return torch.stack(most).amax(0)


def norm_inputs(norm: str, readers: Sequence[str]) -> str:
    """The reader whose inputs stand for what the norm gives."""
    for name in readers:
        if name.endswith(("qkv.weight", "gate_up_proj")):
            return name
    raise MixwellError(f"{norm} feeds no weight to quantise; expected attention and SwiGLU blocks.")
